"""Ctrl-C, or a scheduler's SIGTERM, ends a run early and writes what there is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eggroll.recipes.run_folder import load
from eggroll.training import Checkpoints, read_metrics
from tests.cli.running import COMMAND, PATIENCE, environment
from tests.quick import quickest


def wait_for_lines(process: subprocess.Popen[str], metrics: Path, lines: int) -> None:
    end = time.monotonic() + PATIENCE
    while not metrics.exists() or metrics.read_text(encoding="utf-8").count("\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run makes no generation"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one process")
@pytest.mark.parametrize("number", quickest([signal.SIGINT, signal.SIGTERM], signal.SIGTERM))
def test_an_interrupted_run_leaves_a_usable_folder(number: signal.Signals, tmp_path: Path) -> None:
    options = ["--population", "2", "--generations", "1000000", "--batch-size", "8"]
    command = [*COMMAND, "train", "--out", str(tmp_path / "run"), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            wait_for_lines(process, tmp_path / "run" / "metrics.jsonl", 2)
            process.send_signal(number)
            output, error = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert error == "eggroll: interrupted; what there is was written\n"
    records = read_metrics(tmp_path / "run")
    assert [record["generation"] for record in records] == list(range(1, len(records) + 1))
    assert f"after {len(records)} generations" in output
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.generations()[-1] == len(records)  # so that --resume loses nothing
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["options"]["population"] == 2
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
    assert not list(tmp_path.glob("run/*.partial"))
    load(tmp_path / "run")
