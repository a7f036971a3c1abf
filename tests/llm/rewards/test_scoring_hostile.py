"""Rewards that mean ill: nothing of theirs runs in the parent, stays behind, or sees what it was not given."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Problem
from eggroll.training.errors import RunError
from tests.llm import hostile_rewards as hostile
from tests.llm.rewards.living import running, wait_until_gone

NO_REPLY = "its process said something that is no reward"
SAID = {
    "object that unpickles": r"returned \[2.0\] of type list",
    "error that unpickles": "ExplodingError: .*bomb",
    "terminal": r"KeyError: '\\x1b\[2J\\nand \\u202emore' \(hostile_rewards.py",
    "raw": r"ValueError:  \[2J and  more \(hostile_rewards.py",
    "long": "KeyError: 'x+ ",
    "pickle": NO_REPLY,
    "json": NO_REPLY,
    "half a reply": "no reward within 1 s",
    "silence": "its process ended with the code -9",
}


@pytest.fixture(scope="module")
def scorers():
    with Scorers(hostile.by_order, workers=1, seconds=1) as running:
        yield running


@pytest.fixture
def bomb(tmp_path):
    """A file that is written where something of the reward is unpickled."""
    yield tmp_path / "bomb"
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize("order", SAID)
def test_only_a_number_or_a_short_text_comes_back(scorers, bomb, order):
    rewards = scorers.score(["four", order, "ox"], [Problem("?", str(bomb))] * 3)
    assert rewards.values.tolist() == [4, 2, 2] and rewards.failures.tolist() == [False, True, False]
    said = rewards.error.removeprefix("answer 2 of 3, to '?': ")
    assert re.match(SAID[order], said) and said.isprintable() and len(said) < 2000


@pytest.mark.parametrize("order", ["number that unpickles", "another's reply", "nothing but zeros"])
def test_what_is_said_for_others_is_not_believed(scorers, bomb, order):
    """A reward decides its own number; whatever it does, the next answer has the next one's."""
    rewards = scorers.attempt([order, "three", "seven", order, "four"], [Problem("?", str(bomb))] * 5)
    assert rewards.values[[1, 2, 4]].tolist() == [5, 5, 4]
    if order == "number that unpickles":
        assert rewards.values.tolist() == [2, 5, 5, 2, 4]


def test_a_process_that_returns_twice_counts_once(scorers):
    rewards = scorers.score(["fork", "three", "fork", "four"], [Problem("?")] * 4)
    assert rewards.values[[1, 3]].tolist() == [5, 4] and rewards.failed == 0


@pytest.mark.first(1)
@pytest.mark.parametrize("order", ["deaf", "fine", "die"])
def test_what_a_reward_started_ends_with_its_process(tmp_path, order):
    file = tmp_path / "pids"
    with Scorers(hostile.with_child, workers=1, seconds=1) as scorers:
        rewards = scorers.score([order, "next"], [Problem("?", str(file)), Problem("?", str(tmp_path / "next"))])
        assert rewards.failed == (order != "fine") and rewards.values[1] == 4
        pids = [int(pid) for pid in file.read_text().split()]
        if order == "fine":
            assert all(map(running, pids))  # nobody counts on less
        else:
            wait_until_gone(pids, 10)
    wait_until_gone([*pids, *(int(pid) for pid in (tmp_path / "next").read_text().split())], 10)


def test_variables_are_those_that_programs_need_and_those_that_were_named(monkeypatch, tmp_path):
    hidden = {"SECRET_TOKEN", "PYTHON_API_TOKEN", "LC_SECRET", "PATH_TO_KEY", "HF_TOKEN", "WANDB_API_KEY"}
    hidden |= {"AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "OPENAI_API_KEY", "SSH_AUTH_SOCK"}
    for name in {*hidden, "OTHER_KEY"}:
        monkeypatch.setenv(name, "hidden")
    with Scorers(hostile.variables, workers=1, variables=["OTHER_KEY"]) as scorers:
        scorers.score([""], [Problem("?", str(tmp_path / "names"))])
    seen = set((tmp_path / "names").read_text().split("\n"))
    assert {"OTHER_KEY", "PATH", "JAX_PLATFORMS"} <= seen
    assert not seen & {*hidden, "JAX_COMPILATION_CACHE_DIR"}


@pytest.mark.parametrize("name", ["NOT_SET_ANYWHERE", "HOME=somewhere", ""])
def test_a_variable_that_is_not_set_is_told(name):
    with pytest.raises(RunError, match=f"got the variable '{name}' for the reward, which is not set"):
        Scorers(hostile.length, variables=[name]).__enter__()


@pytest.mark.slow
def test_many_deaths_leave_neither_processes_nor_open_files(scorers, tmp_path):
    scorers.attempt(["die"] * 3, [Problem("?")] * 3)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    scorers.attempt(["die"] * 20, [Problem("?")] * 20)
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 1
