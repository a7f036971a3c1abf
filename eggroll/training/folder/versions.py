"""Versions of what decides a run's numbers."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import jax


def versions() -> dict[str, str]:
    """By name: eggroll, JAX, jaxlib, optax, Flax, Python and the platform."""
    return {
        "eggroll": package_version(),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "optax": version("optax"),
        "flax": version("flax"),
        "python": platform.python_version(),
        "platform": f"{platform.platform()}, {jax.default_backend()}",
    }


def package_version() -> str:
    """The installed version of this package."""
    return version_of("eggroll-jax")


def version_of(package: str) -> str:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is on the path without being installed
        return "unknown"
