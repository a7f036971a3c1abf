"""SIGKILL at any moment of a save leaves whole checkpoints to go on from."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eggroll.training.checkpoints.manager import Checkpoints
from tests.training.checkpoint_states import assert_same, small

pytestmark = [pytest.mark.killing, pytest.mark.slow]  # each takes a process that imports everything

ROOT = Path(__file__).parents[3]
MOMENTS = {  # and the newest generation that has to be there then; the child dies in its fourth save
    "before Orbax begins": 3,
    "while Orbax writes": 3,
    "before the manifest": 3,
    "before the manifest's name": 3,
    "during the removal of an old one": 4,
}


def child(*arguments) -> subprocess.Popen:
    half = "ignore:Error reading persistent compilation cache entry"  # of a child that was killed: compiled anew
    module = "tests.training.checkpoint_child"
    command = [sys.executable, "-W", "error", "-W", half, "-m", module, *map(str, arguments)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def goes_on_from(folder, at_least, at_most) -> None:
    """The newest whole checkpoint is one that was saved, and the next save leaves nothing of the broken one."""
    with Checkpoints(folder, keep=2) as checkpoints:
        found = checkpoints.restore(small(0))
        assert at_least <= found.generation <= at_most
        assert found.record == {"generation": found.generation}
        assert_same(found.state, small(found.generation))
        checkpoints.save(found.generation + 1, small(found.generation + 1), {})
        checkpoints.wait()
        assert checkpoints.generations() == [found.generation, found.generation + 1]
        assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment(tmp_path, moment):
    process = child(tmp_path, moment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, err
    assert out.split() == ["1", "2", "3"]
    goes_on_from(tmp_path, MOMENTS[moment], MOMENTS[moment])


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random(tmp_path, seed):
    process = child(tmp_path)
    told = [int(process.stdout.readline()) for _ in range(2)]
    time.sleep(random.Random(seed).uniform(0, 0.5))  # a moment, not a measurement: any will do
    process.kill()
    told += map(int, process.communicate(timeout=300)[0].split())
    assert process.returncode == -signal.SIGKILL
    goes_on_from(tmp_path, told[-1], told[-1] + 1)
