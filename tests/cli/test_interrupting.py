"""Ctrl-C, or a scheduler's SIGTERM, ends a run early and writes what there is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eggroll.recipes.run_folder import load
from eggroll.training import Checkpoints, read_metrics
from tests.cli.running import COMMAND, PATIENCE, TINY, call, environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one process")
OPTIONS = (*TINY, "--generations", "1000000")


def wait_for_lines(metrics: Path, lines: int, ended: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not metrics.exists() or metrics.read_text(encoding="utf-8").count("\n") < lines:
        assert not ended()
        assert time.monotonic() < end, "the run makes no generation"
        time.sleep(0.02)


def check_usable(run: Path, status: int, output: str, error: str) -> None:
    assert status == 130
    assert error == "eggroll: interrupted; what there is was written\n"
    records = read_metrics(run)
    assert [record["generation"] for record in records] == list(range(1, len(records) + 1))
    assert f"after {len(records)} generations" in output
    with Checkpoints(run / "checkpoints") as checkpoints:
        assert checkpoints.generations()[-1] == len(records)  # so that --resume loses nothing
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["options"]["population"] == 4
    assert (run / "curve.png").stat().st_size > 1000
    assert not list(run.glob("*.partial"))
    load(run)


def test_an_interrupted_run_leaves_a_usable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which a thread of its own sends the signal."""
    run, ended = tmp_path / "run", threading.Event()

    def interrupt() -> None:
        wait_for_lines(run / "metrics.jsonl", 2, ended.is_set)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        status = call("train", "--out", run, *OPTIONS)
    finally:
        ended.set()
        thread.join()
    check_usable(run, status, *capsys.readouterr())


@pytest.mark.slow
def test_an_interrupted_process_leaves_a_usable_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*COMMAND, "train", "--out", str(run), *OPTIONS]
    with subprocess.Popen(command, **pipes, text=True, env=environment()) as process:
        try:
            wait_for_lines(run / "metrics.jsonl", 2, lambda: process.poll() is not None)
            process.send_signal(signal.SIGINT)
            output, error = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    check_usable(run, process.returncode, output, error)
