"""A measurement that needs a process of its own: peak memory, what a first call costs, or one that may fail."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def run_fresh(
    module: str, *arguments: str, seconds: float | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs `python -m <module> <arguments>` and returns the JSON of its last line.

    The caller must not have used a device yet where a device serves one process at a time (TPU).

    Args:
        module: to run.
        *arguments: its own.
        seconds: after which it is ended. Default None: it may take as long as it likes.
        environment: variables besides this process's own.

    Raises:
        RuntimeError: the process failed; with the end of what it wrote.
        TimeoutError: the time was up.
    """
    command = [sys.executable, "-m", module, *arguments]
    options: dict[str, Any] = {
        "cwd": ROOT,
        "env": child_environment() | dict(environment or {}),
        "capture_output": True,
        "text": True,
    }
    try:
        done = subprocess.run(command, **options, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"got no result from {' '.join(command[1:])} within {seconds:.0f} s") from error
    if done.returncode:
        end = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise RuntimeError(f"got exit status {done.returncode} from {' '.join(command[1:])}:\n{end}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def child_environment() -> dict[str, str]:
    """Without this a process on a GPU takes most of the memory at once: its peak says nothing, others get none."""
    return {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
