"""The version of this package."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NAME = "eggroll-jax"  # of the distribution


def _found() -> str:
    """Of a checkout what it says of itself, which an installed one may have been made of earlier; else as installed."""
    beside = Path(__file__).resolve().parents[1] / "pyproject.toml"
    try:
        project = tomllib.loads(beside.read_text(encoding="utf-8"))["project"]
        if project["name"] == NAME:
            return project["version"]
    except (OSError, ValueError, KeyError):
        pass  # no checkout
    try:
        return version(NAME)
    except PackageNotFoundError:  # copied without its metadata
        return "unknown"


__version__ = _found()
