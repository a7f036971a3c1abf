"""A measurement that needs a process of its own: peak memory, and what a first call costs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


def run_fresh(module: str, *arguments: str) -> dict[str, Any]:
    """Runs `python -m <module> <arguments>` and returns the JSON of its last line.

    The caller must not have used a device yet where a device serves one process at a time (TPU).

    Raises:
        RuntimeError: the process failed; with the end of what it wrote.
    """
    # Without this a process on a GPU takes most of the memory at once, and its peak says nothing.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        end = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise RuntimeError(f"got exit status {done.returncode} from {' '.join(command[1:])}:\n{end}")
    return json.loads(done.stdout.strip().splitlines()[-1])
