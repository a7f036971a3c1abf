"""Scoring from scripts: nothing runs twice, Ctrl-C speaks once, and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# No `if __name__ == "__main__"`, on purpose.
PLAIN = """
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Problem, task_named
from eggroll.training.errors import RunError
print("once")
with Scorers(task_named("arithmetic").reward, workers=2) as scorers:
    print(scorers.score(["3"] * 5, [Problem("1 + 2 =", 3)] * 5).values.sum())

def mine(text, problem):
    return 0

class Task:
    def reward(self, text, problem):
        return 0

for reward in (mine, Task().reward):
    try:
        Scorers(reward).__enter__()
    except RunError as why:
        print(why)
"""
BUSY = """
import multiprocessing, sys, time
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Problem
from tests.llm import hostile_rewards
order, seconds = sys.argv[1:]
with Scorers(hostile_rewards.by_order, workers=2, seconds=float(seconds)) as scorers:
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    scorers.score([order] * 4, [Problem("?")] * 4)
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


@pytest.mark.parametrize("script", [True, False])
def test_a_script_needs_no_guard_and_rewards_of_its_own_are_refused(tmp_path, script):
    run = start(PLAIN, tmp_path, script=script)
    out, err = run.communicate(timeout=120)
    assert err == ""
    once, total, *refusals = out.splitlines()
    assert (once, total) == ("once", "5.0")
    assert [why.partition(", for which ")[2].split(" of the script")[0] for why in refusals] == ["mine", "Task"]
    assert all("into a file of its own, for example my_rewards.py" in why for why in refusals)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # an orphan that nobody waits for has ended too


def wait_until_gone(pids: list[int], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while any(map(running, pids)):
        assert time.monotonic() < end, "processes stayed behind"
        time.sleep(0.05)


def started(run: subprocess.Popen) -> list[int]:
    assert run.stdout is not None
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 2
    return pids


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_ctrl_c_is_the_scripts_alone(tmp_path):
    run = start(BUSY, tmp_path, "sleep", "60")
    pids = started(run)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes, also those that only just start
    _, err = run.communicate(timeout=60)
    wait_until_gone(pids)
    assert err.count("Traceback") == err.count("KeyboardInterrupt\n") == 1, err


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("order", ["fine", pytest.param("deaf", marks=pytest.mark.slow)])
def test_processes_of_a_script_that_was_killed_end_by_themselves(tmp_path, order):
    run = start(BUSY, tmp_path, order, "1")
    pids = started(run)
    time.sleep(1)  # for "deaf" to be heard: what comes earlier is the easier case
    run.kill()
    wait_until_gone(pids)
    run.communicate(timeout=60)
