"""Starts the processes of a run, and collects what they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax._src import compiler, distributed

from eggroll.training.errors import RunError

ROOT = Path(__file__).parents[2]
JOB = "tests.training.process_job"
PATIENCE = 240  # seconds, for a machine on which much else runs; a test that needs them has failed

ENDS = (1, 6)  # by its own error, or by JAX's abort, which it does in a process whose coordinator is gone
LOST = "What was saved is whole: start again with --resume, on the processes that are left or on more."

# A process of `process_fit_job` that is told these differs from the usual ones by what `assert_told` looks for.
OTHER = {"generations": 6, "evaluate_every": 5, "every": 2, "strategy": {"population": 16, "chunk": 2}, "batches": 3}
OTHER |= {"mean": 1.0}


class Ended(NamedTuple):
    """One process that has ended."""

    status: int
    log: dict[str, Any] | None
    stderr: str


def keep_programs_of_each() -> None:
    """What each process compiles is kept in the cache on disk.

    JAX has the first one alone write there, whose programs are no use to the others: they would compile in every run.
    """
    write, state = compiler._cache_write, distributed.global_state

    def written(*args: Any, **named: Any) -> None:
        number, state.process_id = state.process_id, 0
        try:
            write(*args, **named)
        finally:
            state.process_id = number

    compiler._cache_write = written


def keep_no_programs(spec: dict[str, Any]) -> None:
    """Where a process is to end before its time, nothing is put into the cache on disk from here on: no half a file.

    What was compiled before is there for the next run: processes that wait for one another are all as far.
    """
    if {"error", "exit"} & spec.keys() or any(name != "SIGTERM" for _, name in spec.get("signals", {}).values()):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)


def why(call: Callable[[], Any]) -> str:
    """The sentence of a `RunError`."""
    try:
        call()
    except RunError as error:
        return str(error)
    return "nothing was raised"


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def spawn(folder: Path, processes: int, process_id: int, *, job: str = JOB, **spec: Any) -> subprocess.Popen[str]:
    """One process of a run."""
    usual = {"timeout": PATIENCE, "lost_after": 10}  # noticed soon: that is all that some tests wait for
    spec = {"folder": str(folder), "processes": processes, "id": process_id, **usual, **spec}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment.pop("XLA_FLAGS", None)  # it could ask for another number of devices
    half = "ignore:Error reading persistent compilation cache entry"  # which another process is writing
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


def assert_told(text: str) -> None:
    """It names whatever process 1, which was told `OTHER`, has otherwise."""
    assert "in which process 1 of 2 differ from process 0: " in text
    for said in (
        "generations: 12 → 6",
        "evaluate_every: 10 → 5",
        "data: null → 3",
        "saving.every: 4 → 2",
        "strategy.population: 8 → 16",
        'strategy.chunk: "auto" → 2',
    ):
        assert f"{said} (process 0 → process 1)" in text
    assert "begun.values.carry/mean: 0 0 → " in text, "arrays that differ where a run begins"
