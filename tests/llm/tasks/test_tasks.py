"""Tasks: what all have in common, and the two small ones."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest

from eggroll.llm.tasks import Problem, Task, task_named
from eggroll.llm.tasks.arithmetic import Arithmetic
from eggroll.llm.tasks.base import Split
from eggroll.llm.tasks.conciseness import QUESTIONS
from eggroll.training.errors import RunError

SPLITS: tuple[Split, ...] = ("train", "test")
NAMES = ("arithmetic", "conciseness", "countdown")


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_its_problems_and_another_gives_others(name):
    task = task_named(name)
    drawn = task.problems("train", 12, seed=3)
    assert drawn == task_named(name).problems("train", 12, seed=3)
    assert drawn != task.problems("train", 12, seed=4)
    assert len({problem.prompt for problem in drawn}) == 12


@pytest.mark.parametrize("name", NAMES)
def test_no_problem_is_both_for_training_and_for_tests(name):
    task = task_named(name)
    train = {p.prompt for seed in range(5) for p in task.problems("train", 60, seed)}
    test = {p.prompt for seed in range(5) for p in task.problems("test", 20, seed)}
    assert train and test and not train & test


@pytest.mark.parametrize("name", NAMES)
def test_tasks_and_problems_travel_between_processes(name):
    task = pickle.loads(pickle.dumps(task_named(name)))
    problem = pickle.loads(pickle.dumps(task.problems("test", 1, seed=0)[0]))
    assert isinstance(task.reward("nothing", problem), float)


@pytest.mark.parametrize("name", NAMES)
def test_options_of_a_task(name):
    task = task_named(name, system="Be brief.", max_tokens=7)
    assert (task.name, task.system, task.max_tokens) == (name, "Be brief.", 7)
    for option in ("larget", "name", "self"):
        with pytest.raises(RunError, match=f"the task '{name}' has no option '{option}'; it has .*system"):
            task_named(name, **{option: 3})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *(("arithmetic", "largest", value) for value in (0, "abc", 2.5, True, None)),
        *(("arithmetic", "operations", value) for value in ("", "/", 5)),
        *(("countdown", "sizes", value) for value in ((), (1,), 3, (2.5,), "34", {"3": 4})),
        *((name, "max_tokens", value) for name in NAMES for value in ("abc", 0, 1.5)),
        *((name, "system", 5) for name in NAMES),
    ],
)
def test_bad_values_are_named_with_their_option(name, option, value):
    with pytest.raises(RunError, match=f"the task '{name}' cannot be made: got {re.escape(f'{option}={value!r};')}"):
        task_named(name, **{option: value})


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(RunError, match=r"no task 'countdwon'; there are arithmetic, .*Did you mean 'countdown'"):
        task_named("countdwon")


def test_a_split_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"got the split 'valid'"):
        task_named("arithmetic").problems("valid", 1, 0)  # pyright: ignore[reportArgumentType]


def test_fewer_problems_than_asked():
    task = task_named("conciseness")
    size = task.size("test")
    assert size and len(task.problems("test", size, 0)) == size
    with pytest.raises(RunError, match=rf"has {size} different problems to test on, and {size + 1} were asked"):
        task.problems("test", size + 1, 0)
    with pytest.raises(RunError, match=r"'arithmetic' has .* different problems to train on, and 50 were"):
        task_named("arithmetic", largest=3).problems("train", 50, 0)


def test_the_questions_are_many_and_different():
    assert len(QUESTIONS) >= 100
    assert len({question.lower() for question, _ in QUESTIONS}) == len(QUESTIONS)
    assert all(question.endswith("?") and 1 <= len(answer) <= 20 for question, answer in QUESTIONS)
    sums = [(q.split()[2:5], answer) for q, answer in QUESTIONS if q.split()[3:4] in (["+"], ["-"])]
    assert len(sums) >= 6
    for (left, operation, right), answer in sums:
        sign = 1 if operation == "+" else -1
        assert int(left) + sign * int(right.rstrip("?")) == int(answer)


def test_conciseness_counts_characters_of_the_stripped_text():
    reward, papers = (task_named("conciseness", degenerate=what).reward for what in ("worst", "scored"))
    problem = Problem("?", "Paris")
    answers = ("Paris", "  Lyons\n", "Paris.", "The capital is Paris", "", "?????", "Paris " * 4, "x y " * 999)
    assert [papers(text, problem) for text in answers] == [0, 0, -1, -15, -5, 0, -18, -3990]
    assert [reward(text, problem) for text in answers] == [0, 0, -1, -15, *[-320] * 4]


SILENT = (
    *("", " \n\t ", "\u200b", "...", "no no no no no", "12 12 12 12", "<answer>12</answer>" * 5, "So: aaaaaaaaaa"),
    *("<think></think><answer></answer>", "<answer> ... </answer>"),
)
SPOKEN = {
    "arithmetic": ("12", "111", "It is 12."),
    "conciseness": ("100000", "Paris is the capital of France."),
    "countdown": ("<think>a a a a a</think><answer>1 + 2</answer>", "<answer>9</answer>"),
}


@pytest.mark.parametrize("name", NAMES)
def test_silence_wins_nothing(name):
    task = task_named(name)
    problem = task.problems("train", 1, seed=0)[0]
    silent = SILENT if name == "countdown" else SILENT[:-2]
    assert task.worst is not None and {task.reward(text, problem) for text in silent} == {task.worst}
    problem = replace(problem, data=12) if name == "arithmetic" else problem
    assert all(task.reward(text, problem) > task.worst for text in SPOKEN[name])
    with pytest.raises(RunError, match='got degenerate=\'none\'; "worst" or "scored" is required'):
        task_named(name, degenerate="none")


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("12", 1),
        (" 12\n", 1),
        ("12.", 1 - 0.8 / 40),
        ("7 + 5 = 12", 1 - 0.8 * 8 / 40),
        ("12" + " so" * 100, 0),
        ("12" + " and so on" * 3 + " to the end", 0.2),
        ("+12", 1 - 0.8 / 40),
        ("13", 0.1),
        ("1", 0.1),
        ("7 + 5 = 13.", 0.1 * (1 - 9 / 40)),
        ("12, or 13", 0.1 * (1 - 7 / 40)),
        ("-12", 0.1 * (1 - 1 / 40)),
        ("112", 0.1 * (1 - 1 / 40)),
        ("12.5", 0.1 * (1 - 2 / 40)),
        ("1,12", 0.1 * (1 - 2 / 40)),
        ("12,000", 0.1 * (1 - 4 / 40)),
        ("13, which is not easy to see if one has no pencil", 0),
        ("twelve", 0),
        ("", 0),
    ],
)
def test_arithmetic_wants_the_number_alone(text, reward):
    assert task_named("arithmetic").reward(text, Problem("What is 7 + 5?", 12)) == pytest.approx(reward, abs=1e-12)


def test_an_operand_that_is_said_again_is_no_answer():
    problem = Problem("What is 16 - 8?", 8)
    assert task_named("arithmetic").reward("16 - 8 = 9.", problem) == pytest.approx(0.1 * (1 - 10 / 40))
    assert task_named("arithmetic").reward("16 - 8 = 8.", problem) == pytest.approx(1 - 0.8 * 10 / 40)


@pytest.mark.parametrize("operations", ["+", "-", "*", "+-*"])
def test_arithmetic_problems_are_right(operations):
    task = Arithmetic(largest=12, operations=operations)
    for problem in task.problems("train", 30, seed=1):
        *asked, left, operation, right = problem.prompt.rstrip("?").split()
        assert operation in operations and asked == ["What", "is"] and problem.data >= 0
        numbers = int(left), int(right)
        assert (
            problem.data == {"+": sum(numbers), "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1]}[operation]
        )
        assert task.reward(str(problem.data), problem) == 1


def test_a_sum_and_its_twin_in_the_other_order_are_one_problem():
    task = task_named("arithmetic", largest=20, operations="+*")
    train, test = (
        {tuple(p.prompt.rstrip("?").split()[2:]) for seed in range(5) for p in task.problems(split, 60, seed)}
        for split in SPLITS
    )
    swapped = {(right, operation, left) for left, operation, right in train}
    assert swapped - train, "both orders are asked"
    assert not test & (train | swapped)
    problems = task_named("arithmetic", operations="+-", largest=3)
    assert len(problems.problems("train", 11, 0)) + len(problems.problems("test", 1, 0)) == 12


class Shout(Task):
    name = "shout"

    def problems(self, split, count, seed):
        return [Problem(f"{split} {seed} {k}") for k in range(count)]

    def reward(self, text, problem):
        return float(text.isupper())


def test_a_task_of_ones_own_needs_two_methods():
    task = Shout()
    assert task.reward("HELLO", task.problems("train", 1, 0)[0]) == 1
    assert task.size("train") is None and task.system is None and task.max_tokens == 64
