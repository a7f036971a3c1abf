"""On what a result was measured: versions, device, cores."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

import jax

PACKAGES = ("eggroll-jax", "jax", "jaxlib", "flax", "optax", "numpy")


def describe() -> dict[str, Any]:
    """Versions, device and date, as a result keeps them."""
    return {
        "device": device_kind(),
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def device_kind() -> str:
    """The accelerator's name, or the processor's with the numbers that tell its kind: one name has many processors."""
    if jax.default_backend() != "cpu":
        return jax.local_devices()[0].device_kind
    info = pathlib.Path("/proc/cpuinfo")
    found = processor(info.read_text()) if info.exists() else ""
    return found or platform.processor() or platform.machine()


def processor(info: str) -> str:
    r"""The first processor of a text as Linux has it in `/proc/cpuinfo`; empty where it is not named there.

    Example:
        >>> processor("cpu family\t: 23\nmodel\t\t: 49\nmodel name\t: AMD EPYC\n")
        'AMD EPYC family 23 model 49'
    """
    fields = dict(reversed(re.findall(r"^([\w ]+?)\s*:\s*(.+?)\s*$", info, re.MULTILINE)))
    if "model name" not in fields:
        return ""
    numbers = [f"{name} {fields[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in fields]
    return " ".join([fields["model name"], *numbers])


def device_slug() -> str:
    """The device as a part of a file's name, with the cores of a processor and the version of JAX."""
    kind = re.sub(r"[^a-z0-9]+", "-", device_kind().lower()).strip("-")
    cores = f"-{describe()['cores']}-cores" if jax.default_backend() == "cpu" else ""
    return f"{jax.default_backend()}-{kind}{cores}-jax-{jax.__version__}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
