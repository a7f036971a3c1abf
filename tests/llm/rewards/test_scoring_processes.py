"""Scoring processes come and go: replaced when they are killed, refused before the run, gone after it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import threading

import pytest

from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Problem, Task
from eggroll.training.errors import RunError
from tests.llm import hostile_rewards as hostile
from tests.llm.rewards.living import children

ANY = Problem("How are you?")


@pytest.fixture(autouse=True)
def none_left():
    """No test leaves a process behind."""
    before = children(os.getpid())
    yield
    assert children(os.getpid()) <= before


def test_a_process_killed_while_idle_is_replaced():
    with Scorers(hostile.process, workers=1) as scorers:
        first = int(scorers.score([""], [ANY]).values[0])
        os.kill(first, signal.SIGKILL)
        second = int(scorers.score([""], [ANY]).values[0])
    assert first != second


def test_rewards_that_lie_in_no_module_are_sent_whole():
    scale = 3

    class Own(Task):
        def problems(self, split, count, seed):
            return [Problem("?", lambda text: len(text))] * count

        def reward(self, text, problem):
            return problem.data(text)

    for reward, value in ((lambda text, problem: scale * len(text), 6), (Own().reward, 2)):
        with Scorers(reward, workers=1) as scorers:
            assert scorers.score(["ab"], Own().problems("train", 1, 0)).values.tolist() == [value]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (functools.partial(hostile.length, threading.Lock()), "cannot be sent to other processes .*lock.*plain data"),
        ("a string", "'a string', which cannot be called"),
    ],
)
def test_rewards_that_cannot_travel_are_refused_before_the_run(reward, said):
    with pytest.raises(RunError, match=said), Scorers(reward):
        pass


def test_processes_end_when_the_block_raises():
    with pytest.raises(KeyboardInterrupt), Scorers(hostile.length, workers=2):
        raise KeyboardInterrupt


@pytest.mark.first(1)
@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_ctrl_c_while_processes_start_leaves_none(monkeypatch, interrupted):
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)
            if len(started) == interrupted:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), Scorers(hostile.length, workers=2):
        pass
    assert started and all(process.poll() is not None for process in started)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
