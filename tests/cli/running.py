"""Runs the command line, in this process or in another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eggroll.cli import main

COMMAND = [sys.executable, "-m", "eggroll"]
TINY = ("--population", "4", "--generations", "3", "--batch-size", "16")
PATIENCE = 240  # seconds for imports and compilation on a busy machine
PNG = b"\x89PNG\r\n\x1a\n"
DIFFERENTIATION = ("grad", "value_and_grad", "vjp", "jvp", "linearize", "jacrev", "jacfwd")


@contextmanager
def no_differentiation() -> Iterator[None]:
    """Every way into JAX's differentiation raises."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something differentiates")

    with pytest.MonkeyPatch.context() as patch:
        for name in DIFFERENTIATION:
            patch.setattr(jax, name, refuse)
        yield


def call(*arguments: str | Path) -> int:
    """The exit status of the command line with these arguments."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert isinstance(end.code, int | None)
        return end.code or 0


def train(folder: Path, *options: str) -> int:
    """The exit status of a tiny run."""
    return call("train", "--out", folder, *TINY, *options)


def environment(**more: str) -> dict[str, str]:
    """Variables for a run in another process, wide enough that no line wraps."""
    return {**os.environ, "COLUMNS": "200", **more}


def spawn(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    options = {"env": environment(), "timeout": 300, **options}
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The saved parameters of a run."""
    with np.load(folder / "parameters.npz", allow_pickle=False) as file:
        return dict(file)
