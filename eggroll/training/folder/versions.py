"""Versions of what decides a run's numbers."""

from __future__ import annotations

import platform
from importlib.metadata import version

import jax

from eggroll.version import __version__


def versions() -> dict[str, str]:
    """By name: eggroll, JAX, jaxlib, optax, Flax, Python and the platform."""
    return {
        "eggroll": __version__,
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "optax": version("optax"),
        "flax": version("flax"),
        "python": platform.python_version(),
        "platform": f"{platform.platform()}, {jax.default_backend()}",
    }
