"""Starts the processes of a run, and collects what they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
JOB = "tests.training.process_job"
PATIENCE = 240  # seconds, for a machine on which much else runs; a test that needs them has failed


class Ended(NamedTuple):
    """One process that has ended."""

    status: int
    log: dict[str, Any] | None
    stderr: str


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def spawn(folder: Path, processes: int, process_id: int, *, job: str = JOB, **spec: Any) -> subprocess.Popen[str]:
    """One process of a run."""
    usual = {
        "timeout": PATIENCE,
        "lost_after": 10,
    }  # what is lost is noticed soon: that is all that some tests wait for
    spec = {"folder": str(folder), "processes": processes, "id": process_id, **usual, **spec}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment.pop("XLA_FLAGS", None)  # it could ask for another number of devices
    half = "ignore:Error reading persistent compilation cache entry"  # of a process that was killed: compiled anew
    command = [sys.executable, "-W", "error", "-W", half, "-m", job, json.dumps(spec)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, env=environment, **pipes)


def collect(folder: Path, started: list[subprocess.Popen[str]]) -> list[Ended]:
    """Waits for all, and kills what does not end."""
    ended = []
    try:
        for number, process in enumerate(started):
            _, stderr = process.communicate(timeout=PATIENCE)
            log = folder / f"{number}.json"
            content = json.loads(log.read_text(encoding="utf-8")) if log.exists() else None
            ended.append(Ended(process.returncode, content, stderr))
    finally:
        for process in started:
            process.kill()
    return ended


def launch(folder: Path, processes: int, **spec: Any) -> list[Ended]:
    """A run in so many processes."""
    folder.mkdir(exist_ok=True)
    coordinator = f"localhost:{free_port()}"
    started = [spawn(folder, processes, i, coordinator=coordinator, **spec) for i in range(processes)]
    return collect(folder, started)
