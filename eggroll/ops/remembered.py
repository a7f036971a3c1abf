"""What was found about a kernel, on disk: so that it is tried once, not in every process.

A file for each finding, in the user's cache folder. It holds all that the finding depends on, and counts for nothing
unless that is what is asked: the chip and its driver, the versions of eggroll, JAX and jaxlib, and the kernel's source.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LARGEST = 1 << 16  # bytes of a file that is read

Key = dict[str, Any]


def folder() -> Path:
    """Where findings lie: `$XDG_CACHE_HOME/eggroll/kernels`, else `~/.cache/eggroll/kernels`.

    Raises:
        OSError: there is no such place.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others do not count, says its specification
        return Path(base, "eggroll", "kernels")
    try:
        return Path.home() / ".cache" / "eggroll" / "kernels"
    except RuntimeError as why:
        raise OSError(f"no home folder: {why}") from why


def key_of(operation: str, name: str, function: Callable[..., Any], kind: str, device: Any) -> Key | None:
    """All that a finding depends on; None where that cannot be known: a function that no other process could import."""
    source = _source(function)
    if source is None:
        return None
    found = {package: _version(package) for package in ("eggroll-jax", "jax", "jaxlib")}
    chip = {"platform": device.platform, "chip": device.device_kind, "driver": device.client.platform_version}
    return {"operation": operation, "implementation": name, "kind": kind, "source": source, **found, **chip}


def read(key: Key) -> Any:
    """What was found; None where nothing was, or the file is damaged, another's or about something else."""
    try:
        file = _file(key)
        status = file.stat()
        others = hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022)
        if others or not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            return None
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("found") if isinstance(content, dict) and content.get("key") == key else None


def write(key: Key, found: Mapping[str, Any]) -> str:
    """Puts it down, whole or not at all; returns why it could not be, an empty string where it was."""
    temporary = ""
    try:
        file = _file(key)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
        with open(handle, "w", encoding="utf-8") as out:
            json.dump({"key": key, "found": found}, out, indent=1)
        os.replace(temporary, file)
    except OSError as why:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return f"{type(why).__name__}: {why}"
    return ""


def _file(key: Key) -> Path:
    return folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is on the path without being installed
        return "unknown"


def _source(function: Callable[..., Any]) -> str | None:
    """A function's name and a digest of its file, and of eggroll's kernels and operations; None for one without."""
    name = getattr(function, "__qualname__", "<none>")
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    file = getattr(module, "__file__", None)
    if found is not function or file is None:  # a partial, a lambda, a local function: their names do not tell them
        return None
    with contextlib.suppress(OSError):
        return f"{name} {hashlib.sha256(Path(file).read_bytes() + _own_sources()).hexdigest()}"
    return None


@functools.cache
def _own_sources() -> bytes:
    """Digests of the files beside this one and of the kernels: in a checkout they change without another version."""
    folders = {Path(__file__).parent, *map(Path, importlib.import_module("eggroll.kernels").__path__)}
    files = sorted((file for folder in folders for file in folder.glob("*.py")), key=lambda file: file.name)
    return b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
