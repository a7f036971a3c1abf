"""Packages: which extra brings each, what is said where one is missing, and the versions that are installed."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from eggroll.training.errors import RunError
from eggroll.version import __version__

# What is imported -> the distribution that has it, and the extra of pyproject.toml that brings it.
# Without an extra: gymnax, which would take JAX below 0.12 with it.
PACKAGES = {
    "ale_py": ("ale-py", "atari"),
    "brax": ("brax", "brax"),
    "cloudpickle": ("cloudpickle", "llm"),
    "gguf": ("gguf", "gguf"),
    "gymnasium": ("gymnasium", "rl"),
    "gymnax": ("gymnax", ""),
    "huggingface_hub": ("huggingface-hub", "llm"),  # of transformers, as tokenizers
    "jinja2": ("jinja2", "llm"),
    "jumanji": ("jumanji", "jumanji"),
    "matplotlib": ("matplotlib", "train"),
    "navix": ("navix", "navix"),
    "orbax": ("orbax-checkpoint", "train"),
    "PIL": ("pillow", "rl"),
    "pyarrow": ("pyarrow", "data"),
    "reasoning_gym": ("reasoning-gym", "reasoning"),
    "safetensors": ("safetensors", "llm"),
    "sklearn": ("scikit-learn", "train"),
    "tensorboardX": ("tensorboardX", "tensorboard"),
    "tokenizers": ("tokenizers", "llm"),
    "trackio": ("trackio", "trackio"),
    "transformers": ("transformers", "llm"),
    "tyro": ("tyro", "train"),
    "wandb": ("wandb", "wandb"),
}


class MissingPackageError(RunError, ModuleNotFoundError):
    """What was asked for needs a package that is not installed."""


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Says what is missing, for what, and how to get it, where an import inside fails; also decorates functions.

    Args:
        what: needs the package, a plural.

    Raises:
        MissingPackageError: one of `PACKAGES` is not installed. Any other import that fails is raised as it is.

    Example:
        >>> with needed_for("pictures"):
        ...     raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        Traceback (most recent call last):
        eggroll.extras.MissingPackageError: got no package matplotlib, which pictures need: pip install ...
    """
    try:
        yield
    except MissingPackageError:
        raise
    except ModuleNotFoundError as why:
        module = (why.name or "").partition(".")[0]
        if module not in PACKAGES:
            raise
        raise _missing(module, what) from why


def check_installed(module: str, what: str) -> None:
    """Raises `MissingPackageError` where `module`, one of `PACKAGES`, is missing; does not import it."""
    if sys.modules.get(module, module) is None or importlib.util.find_spec(module) is None:
        raise _missing(module, what)


def _missing(module: str, what: str) -> MissingPackageError:
    package, extra = PACKAGES[module]
    install = f'"eggroll-jax[{extra}]"' if extra else f"{package} (no extra brings it: it asks for an older JAX)"
    error = MissingPackageError(f"got no package {package}, which {what} need: pip install {install}")
    error.name = module
    return error


def versions() -> dict[str, str]:
    """Of what decides the numbers of a run, by name: eggroll, JAX, jaxlib, optax, Flax, Python and the platform."""
    import jax

    return {
        "eggroll": __version__,
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "optax": version("optax"),
        "flax": version("flax"),
        "python": platform.python_version(),
        "platform": f"{platform.platform()}, {jax.default_backend()}",
    }


def version_of(package: str) -> str:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is on the path without being installed
        return "unknown"
