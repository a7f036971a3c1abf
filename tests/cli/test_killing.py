"""SIGKILL at random moments, four times: the run goes on bit for bit as one that nothing touched."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.running import COMMAND, PATIENCE, arrays, call, environment, spawn
from tests.training.problems import left_by

pytestmark = [pytest.mark.optimised, pytest.mark.killing]  # bits, as users get them

LAST = 150
# Of the kills, those before the first generation: imports and compilation, and where a run is restored, by then with
# what kills have left.
IN_START = (True, False, False, True)
OPTIONS = ["--population", "4", "--generations", str(LAST), "--batch-size", "8", "--checkpoint-every", "7"]


def lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_one(folder: Path, moment: random.Random, *, in_start: bool) -> None:
    """Starts the run, or goes on with it, and kills it."""
    command = [*COMMAND, "train", "--resume", "--out", str(folder), *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    with process:
        if in_start:
            time.sleep(moment.uniform(0.1, 6))
        else:
            before, more = lines(folder / "metrics.jsonl"), moment.randint(1, 40)
            end = time.monotonic() + PATIENCE
            while process.poll() is None and lines(folder / "metrics.jsonl") - before < more:
                # A resumed run first takes the lines beyond its checkpoint away.
                before = min(before, lines(folder / "metrics.jsonl"))
                assert time.monotonic() < end, "the run makes no generation"
                time.sleep(0.001)
            time.sleep(moment.uniform(0, 0.03))
        process.kill()
        process.wait()
        if process.returncode != -signal.SIGKILL:
            raise AssertionError((process.returncode, process.stderr and process.stderr.read()))


def last_checkpoint(folder: Path) -> tuple[dict[str, bytes], Any]:
    """Every bit of parameters, optimizer, key and generation; and the place of the data and the rest, without times."""
    path = max((folder / "checkpoints").iterdir(), key=lambda one: int(one.name.split("-")[0]))
    content = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))["content"]
    assert content["record"].pop("seconds") > 0
    with np.load(path / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name].tobytes() for name in file.files}, content


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_kills_change_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call("train", "--out", whole, *OPTIONS) == 0
    moment = random.Random(2026)
    reached = []
    for in_start in IN_START:
        kill_one(killed, moment, in_start=in_start)
        reached.append(lines(killed / "metrics.jsonl"))
    assert 0 < max(reached) < LAST, reached
    done = spawn("train", "--resume", "--out", killed, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "resumed after" in done.stdout

    first, second = arrays(whole), arrays(killed)
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path])
    assert last_checkpoint(killed) == last_checkpoint(whole)
    expected, got = left_by(whole), left_by(killed)
    assert got["metrics"] == expected["metrics"]  # none twice
    assert got["ledger"] == expected["ledger"]
    for config in (expected["config"], got["config"]):
        for name in ("out", "resume"):
            del config["options"][name]
    assert got["config"] == expected["config"]
    assert not list(killed.glob("*.partial"))
