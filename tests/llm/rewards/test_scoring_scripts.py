"""Scoring from scripts: nothing runs twice, Ctrl-C speaks once, and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.llm.rewards.living import running, wait_until_gone

ROOT = Path(__file__).parents[3]
IN_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
# No `if __name__ == "__main__"`, on purpose.
PLAIN = """
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Problem, task_named
print("once")
def scored(reward):
    with Scorers(reward, workers=1) as scorers:
        print(scorers.score(["3"] * 5, [Problem("1 + 2 =", 3)] * 5).values.sum())

def mine(text, problem):
    return len(text) * factor

class Task:
    def reward(self, text, problem):
        return problem.data

factor = 2
for reward in (task_named("arithmetic").reward, mine, Task().reward, lambda text, problem: 4):
    scored(reward)
"""
BUSY = """
import os, sys, time
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Problem
from tests.llm import hostile_rewards
from tests.llm.rewards.living import children
order, seconds, file = sys.argv[1:]
reward = hostile_rewards.with_child if file else hostile_rewards.by_order
with Scorers(reward, workers=1, seconds=float(seconds)) as scorers:
    print(*children(os.getpid()), flush=True)
    scorers.score([order], [Problem("?", file)])
    time.sleep(60)
"""


def start(code: str, folder: Path, *arguments: str, script: bool = True) -> subprocess.Popen:
    file = folder / "script.py"
    file.write_text(code)
    command = [sys.executable, "-W", "error", *([str(file)] if script else ["-c", code]), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
    )


@pytest.mark.first(1)
@pytest.mark.parametrize("script", [True, False])
def test_a_script_needs_no_guard_and_its_own_functions_are_rewards(tmp_path, script):
    run = start(PLAIN, tmp_path, script=script)
    out, err = run.communicate(timeout=120)
    assert (out.split(), err) == (["once", "5.0", "10.0", "15.0", "20.0"], "")


def started(run: subprocess.Popen, file: Path | None = None) -> list[int]:
    """The processes that score, the one that guards them, and what the reward started once it wrote that down."""
    assert run.stdout is not None
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 2
    end = time.monotonic() + 60
    while file is not None and len(pids) < 4 and time.monotonic() < end:
        pids += [int(pid) for pid in (file.read_text() if file.exists() else "").split()]
        time.sleep(0.05)
    return pids


@IN_PROC
def test_ctrl_c_is_the_scripts_alone(tmp_path):
    run = start(BUSY, tmp_path, "sleep", "60", "")
    pids = started(run)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, err = run.communicate(timeout=60)
    wait_until_gone(pids)
    assert err.count("Traceback") == err.count("KeyboardInterrupt\n") == 1, err


@IN_PROC
@pytest.mark.first(1)
@pytest.mark.parametrize("order", ["deaf", "fine"])
def test_processes_of_a_script_that_was_killed_end_by_themselves_and_what_they_started_too(tmp_path, order):
    run = start(BUSY, tmp_path, order, "60", str(tmp_path / "pids"))
    pids = started(run, tmp_path / "pids")
    assert len(pids) == 4 and all(map(running, pids))
    run.kill()
    wait_until_gone(pids)
    run.communicate(timeout=60)
