"""Rewards in processes: what counts as failure, and that one costs the others nothing."""

from __future__ import annotations

import os
import re
import threading

import numpy as np
import pytest

from eggroll.llm.rewards.scoring import Rewards, Scorers, settled
from eggroll.llm.tasks import Problem, task_named
from eggroll.training.errors import RunError
from tests.llm import hostile_rewards as hostile

ANY = Problem("How are you?")
FAILURES = {
    "raise": r"KeyError: 'no such key' \(hostile_rewards.py, line \d+\)",
    "exit": "SystemExit: enough",
    "die": "its process ended with the code 3",
    "segfault": "its process ended with the code -11",
    "sleep": "no reward within 0.5 s",
    "spin": "no reward within 0.5 s",
    "regex": "no reward within 0.5 s",
    "string": "returned the string '0.5'; a finite number is required",
    "bytes": "returned the string b'1'",
    "none": "returned None of type NoneType; a finite number is required",
    "nan": "returned nan; a finite number is required",
    "inf": "returned inf",
    "list": r"returned \[1.0\] of type list",
    "array": r"returned array\(\[1.\]\) of type ndarray",
    "complex": "returned 1j of type complex",
    "recursion": "RecursionError",
    "unprintable": "Unprintable: an error that cannot be printed",
}


@pytest.fixture(scope="module")
def scorers():
    with Scorers(hostile.by_order, workers=2, seconds=0.5) as running:
        yield running


def score(scorers, *texts) -> Rewards:
    return scorers.score(texts, [ANY] * len(texts))


@pytest.mark.parametrize("order", FAILURES)
def test_a_failure_gets_the_worst_score_of_the_call_and_says_why(scorers, order):
    rewards = score(scorers, "four", order, "sixsix", "ox")
    assert rewards.values.tolist() == [4, 2, 6, 2] and rewards.values.dtype == np.float64
    assert rewards.failed == 1 and rewards.failures.tolist() == [False, True, False, False]
    assert re.match("answer 2 of 4, to 'How are you.': " + FAILURES[order], rewards.error)


def test_what_no_signal_ends_costs_its_own_answer_alone(scorers):
    texts = ["x" * k for k in range(1, 61)]
    for place, order in ((7, "deaf"), (30, "stubborn"), (55, "leave")):
        texts[place] = order
    rewards = score(scorers, *texts)
    assert np.flatnonzero(rewards.failures).tolist() == [7, 30, 55]
    assert rewards.values[~rewards.failures].tolist() == [k for k in range(1, 61) if k - 1 not in (7, 30, 55)]
    assert set(rewards.values[rewards.failures]) == {1}
    assert rewards.error.endswith("no reward within 0.5 s, and its process had to be ended")


def test_many_deaths_in_one_call(scorers):
    rewards = score(scorers, *["fine", "die", "segfault"] * 2)
    assert rewards.values.tolist() == [4] * 6 and rewards.failed == 4


@pytest.mark.parametrize(("order", "value"), [("true", 1), ("numpy", 0.5), ("scalar", 2), ("fraction", 0.25)])
def test_numbers_of_other_kinds_are_numbers(scorers, order, value):
    assert score(scorers, order).values.tolist() == [value]


def test_where_all_fail_the_first_is_quoted(scorers):
    with pytest.raises(RunError, match=r"the reward failed for all 2 answers; the first: answer 1 of 2, .* '0.5'"):
        score(scorers, "string", "raise")
    attempt = scorers.attempt(["string", "raise"], [ANY, ANY])  # in one of several processes, others may have more luck
    assert np.isnan(attempt.values).all() and attempt.failed == 2
    assert score(scorers, "good").values.tolist() == [4]


def test_no_answers_and_as_many_problems_as_answers(scorers):
    assert score(scorers).values.shape == (0,)
    with pytest.raises(ValueError, match="got 1 texts and 2 problems"):
        scorers.score(["one"], [ANY, ANY])


def test_order_is_kept_over_many_answers(scorers):
    texts = ["x" * (k * 7919 % 641 + 8) for k in range(3000)]
    rewards = score(scorers, *texts)
    assert rewards.values.tolist() == [len(text) for text in texts]
    assert (rewards.failed, rewards.error) == (0, "")


def test_scores_are_those_of_the_reward_itself():
    task = task_named("countdown")
    problems = task.problems("train", 40, seed=0)
    texts = [f"<think>.</think><answer>{p.data['solution'] if k % 2 else '1'}</answer>" for k, p in enumerate(problems)]
    with Scorers(task.reward, workers=2) as scorers:
        rewards = scorers.score(texts, problems)
    assert rewards.values.tolist() == [task.reward(t, p) for t, p in zip(texts, problems, strict=True)]
    assert set(rewards.values) == {0.1, 1.1}


def test_each_answer_is_scored_once():
    calls = []
    reward = lambda text, problem: calls.append(text) or (len(calls) if text != "die" else os._exit(3))  # noqa: E731
    with Scorers(reward, workers=1) as scorers:
        rewards = scorers.score(["a", "b", "die", "c", "d"], [ANY] * 5)
    assert rewards.values.tolist() == [1, 2, 1, 1, 2]  # counted anew in the process that took the other's place
    assert calls == []


def test_processes_hold_no_jax_and_leave_accelerators_alone():
    with Scorers(hostile.modules, workers=1) as scorers:
        found = scorers.score(["jax", "flax", "transformers", "eggroll.llm.rewards.worker"], [ANY] * 4)
    assert found.values.tolist() == [0, 0, 0, 1]
    with Scorers(task_named("arithmetic").reward, workers=1), Scorers(hostile.environment, workers=1) as scorers:
        assert scorers.score(["JAX_PLATFORMS"], [Problem("", "cpu")]).values.tolist() == [1]


def test_bad_settings_and_use_outside_with():
    with pytest.raises(ValueError, match="got workers=0"):
        Scorers(hostile.length, workers=0)
    with pytest.raises(ValueError, match="seconds=nan"):
        Scorers(hostile.length, seconds=float("nan"))
    with pytest.raises(RuntimeError, match="inside `with Scorers"):
        Scorers(hostile.length).score(["x"], [ANY])


def test_problems_that_cannot_travel(scorers):
    with pytest.raises(RunError, match=r"the problems cannot be sent to other processes .*plain data"):
        scorers.score(["x"], [Problem("?", threading.Lock())])


def test_the_worst_is_of_all_that_were_gathered():
    gathered = Rewards(np.array([np.nan, 3.0, -2.0, np.nan]), 2, "why", np.array([True, False, False, True]))
    assert settled(gathered).values.tolist() == [-2, 3, -2, -2]
    assert settled(gathered, worst=-7).values.tolist() == [-7, 3, -2, -7]
    assert settled(gathered, worst=0).values.tolist() == [-2, 3, -2, -2]
    assert settled(gathered._replace(values=np.full(4, np.nan)), worst=-7).values.tolist() == [-7] * 4
    with pytest.raises(RunError, match="failed for all 1 answers; the first: why"):
        settled(Rewards(np.array([np.nan]), 1, "why", np.array([True])))
