"""Tasks of reasoning_gym."""

from __future__ import annotations

import decimal
import pickle
import sys

import numpy as np
import pytest

from eggroll.llm.tasks import Problem, task_named
from eggroll.training.errors import RunError

pytest.importorskip("reasoning_gym")
from reasoning_gym.factory import DATASETS

NEEDS_OPTIONS = {"composite"}  # a mixture of datasets that are to be named
ANY_ANSWER = {"game_of_life_halting"}  # its verifier takes what is not "True" for "False"


def test_the_verifier_scores_what_stands_in_the_last_answer_block():
    task = task_named("reasoning_gym:chain_sum", max_terms=2, max_digits=1)
    problem = task.problems("train", 1, seed=5)[0]
    right = problem.data["answer"]
    assert task.system and "<answer>" in task.system
    assert task.reward(f"<answer>99999</answer> or rather\n<answer>\n{right} </answer>.", problem) == 1
    for wrong in (
        right,
        f"<answer>{right}",
        f"{right}</answer>",
        "<answer></answer>",
        f"<answer>{right}</answer><answer>x</answer>",
    ):
        assert task.reward(wrong, problem) == 0


def test_silence_wins_nothing():
    """13 of the datasets give an empty answer .01 to .1; a right answer may repeat itself."""
    task, papers = (task_named("reasoning_gym:cryptarithm", degenerate=what) for what in ("worst", "scored"))
    problem = task.problems("train", 1, seed=0)[0]
    assert papers.reward("<answer></answer>", problem) == 0.1 and task.reward("<answer> </answer>", problem) == 0
    assert task.reward("<answer>no</answer>" * 9, problem) == 0 < papers.reward("<answer>no</answer>" * 9, problem)
    assert pickle.loads(pickle.dumps(papers)).degenerate == "scored"
    grid = task_named("reasoning_gym:game_of_life", tags=False)
    problem = grid.problems("train", 1, seed=0)[0]
    assert grid.reward(problem.data["answer"], problem) == 1


def test_without_tags_the_whole_text_is_scored():
    task = task_named("reasoning_gym:chain_sum", tags=False)
    problem = task.problems("test", 1, seed=5)[0]
    assert task.system and "<answer>" not in task.system
    assert task.reward(f" {problem.data['answer']}\n", problem) == 1


def test_options_reach_the_dataset_and_wrong_ones_are_refused():
    task = task_named("reasoning_gym:chain_sum", min_terms=2, max_terms=2, system="Add.", max_tokens=9)
    assert (task.name, task.system, task.max_tokens) == ("reasoning_gym:chain_sum", "Add.", 9)
    assert all(p.data["metadata"]["num_terms"] == 2 for p in task.problems("train", 10, seed=0))
    with pytest.raises(RunError, match=r"'chain_sum' cannot be made with the options \{'terms': 2\}: TypeError"):
        task_named("reasoning_gym:chain_sum", terms=2)
    with pytest.raises(RunError, match=r"'chain_sum' cannot be made .*: AssertionError"):
        task_named("reasoning_gym:chain_sum", min_terms=0)
    for option in ("seed", "size", "dataset", "name"):
        with pytest.raises(RunError, match=f"the option '{option}', which the task chooses itself"):
            task_named("reasoning_gym:chain_sum", **{option: 3})
    for option, value in (("tags", "no"), ("max_tokens", "abc"), ("system", 5)):
        with pytest.raises(RunError, match=f"'reasoning_gym:chain_sum' cannot be made: got {option}={value!r};"):
            task_named("reasoning_gym:chain_sum", **{option: value})
    with pytest.raises(RunError, match="'composite' cannot be made without options"):
        task_named("reasoning_gym:composite")


def test_seeds_and_splits():
    task = task_named("reasoning_gym:chain_sum", max_terms=2, max_digits=1)
    assert (
        task.problems("train", 20, seed=1) == task.problems("train", 20, seed=1) != task.problems("train", 20, seed=2)
    )
    train = {p.prompt for seed in range(6) for p in task.problems("train", 30, seed)}
    test = {p.prompt for seed in range(6) for p in task.problems("test", 30, seed)}
    assert len(train) < 180 and not train & test  # few enough questions that some come again
    with pytest.raises(RunError, match=r"has \d+ different problems to train on, and 500 were asked for"):
        task.problems("train", 500, seed=0)


def test_a_verifier_that_raises_takes_the_answer_for_wrong():
    task = task_named("reasoning_gym:prime_factorization")
    problem = task.problems("train", 1, seed=0)[0]
    assert task.reward("<answer>two times two</answer>", problem) == 0
    assert task.reward(f"<answer>{problem.data['answer']}</answer>", problem) == 1


@pytest.mark.parametrize("name", ["decimal_arithmetic", "pool_matrix"])
def test_the_rest_of_the_process_does_not_notice(name):
    """One sets the precision of all decimals, the other NumPy's seed."""
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    precision = decimal.getcontext().prec
    task = task_named(f"reasoning_gym:{name}")
    problem = task.problems("train", 1, seed=0)[0]
    assert task.reward(f"<answer>{problem.data['answer']}</answer>", problem) == 1
    assert (decimal.getcontext().prec, np.random.rand()) == (precision, expected)


def test_an_unknown_name_lists_its_neighbours():
    with pytest.raises(
        RunError, match=rf"no dataset 'chain_sums'; near it are .*chain_sum.*, of {len(DATASETS)} in all"
    ):
        task_named("reasoning_gym:chain_sums")
    with pytest.raises(RunError, match="no dataset ''"):
        task_named("reasoning_gym:")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RunError, match=r'pip install "eggroll-jax\[reasoning\]"'):
        task_named("reasoning_gym:chain_sum")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DATASETS) - NEEDS_OPTIONS))
def test_every_dataset(name):
    task = task_named(f"reasoning_gym:{name}")
    problems = pickle.loads(pickle.dumps(task.problems("train", 2, seed=0)))
    scorer = pickle.loads(pickle.dumps(task))
    for problem in problems:
        assert isinstance(problem, Problem) and problem.prompt
        if problem.data["answer"] is not None:  # some verifiers alone know
            assert scorer.reward(f"<answer>{problem.data['answer']}</answer>", problem) > 0.99
        if name not in ANY_ANSWER:
            assert 0 <= scorer.reward("<answer>qwerty</answer>", problem) <= 0.3  # some reward anything a little
        assert scorer.reward("qwerty", problem) == 0
