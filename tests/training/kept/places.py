"""Where kept runs were made, and whether bits are the same here."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "optax")  # what computes; the package itself has to give the same bits in any version
OPTIMIZATIONS = "jax_disable_most_optimizations"


def place() -> dict[str, str]:
    """What decides the arithmetic that the compiler emits: versions, and the processor with its instructions."""
    return {name: version(name) for name in PACKAGES} | {"platform": jax.default_backend(), "processor": _processor()}


def _processor() -> str:
    """Machine and a digest of model and features; two that differ may still round alike."""
    file, names = Path("/proc/cpuinfo"), ("cpu family", "model", "model name", "flags", "features")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else [platform.processor()]
    told = sorted({line for line in lines if line.split("\t")[0].split(":")[0].strip().lower() in names} or lines[:1])
    return f"{platform.machine()} {hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:12]}"


@contextmanager
def compiling(optimized: bool) -> Iterator[None]:
    """Programs are optimised or not, whatever the process was started with; JAX keeps none that were made before."""
    before = jax.config.read(OPTIMIZATIONS)
    jax.clear_caches()  # a program is found again however it was compiled
    jax.config.update(OPTIMIZATIONS, not optimized)
    try:
        yield
    finally:
        jax.config.update(OPTIMIZATIONS, before)
        jax.clear_caches()
