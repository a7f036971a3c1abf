"""Scoring processes come and go: replaced when they are killed, refused before the run, gone after it."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from eggroll.llm.rewards import processes as scoring_processes
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Problem
from eggroll.training.errors import RunError
from tests.llm import hostile_rewards as hostile

ANY = Problem("How are you?")


@pytest.fixture(autouse=True)
def none_left():
    """No test leaves a process behind."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def test_a_process_killed_while_idle_is_replaced():
    with Scorers(hostile.process, workers=1) as scorers:
        first = int(scorers.score([""], [ANY]).values[0])
        os.kill(first, signal.SIGKILL)
        second = int(scorers.score([""], [ANY]).values[0])
    assert first != second


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            lambda text, problem: 0,
            "cannot be sent to other processes .*lambda.*; a function at the top level of a module",
        ),
        (hostile.nested(), r"nested.<locals>.inner.*cannot be sent to other processes"),
        ("a string", "'a string', which cannot be called"),
    ],
)
def test_rewards_that_cannot_travel_are_refused_before_the_run(reward, said):
    with pytest.raises(RunError, match=said), Scorers(reward):
        pass


def test_processes_end_when_the_block_raises():
    with pytest.raises(KeyboardInterrupt), Scorers(hostile.length, workers=2):
        raise KeyboardInterrupt


@pytest.mark.parametrize("interrupted", [1, 2])
def test_ctrl_c_while_processes_start_leaves_none(monkeypatch, interrupted):
    started, popen = [], scoring_processes._Process._Popen

    def interrupted_popen(process):
        started.append(popen(process))
        if len(started) == interrupted:
            signal.raise_signal(signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(scoring_processes._Process, "_Popen", staticmethod(interrupted_popen))
    with pytest.raises(KeyboardInterrupt), Scorers(hostile.length, workers=2):
        pass
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
