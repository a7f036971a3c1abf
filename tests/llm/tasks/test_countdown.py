"""Countdown: problems that have solutions, and expressions that are read and never run."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.llm.tasks import Problem, task_named
from eggroll.llm.tasks.countdown import (
    LONGEST,
    Countdown,
    Unusable,
    answer_reward,
    evaluate,
    format_reward,
    numbers_in,
    parsed,
)

TASK = Countdown(sizes=(2, 3, 4, 5, 6))
PROBLEMS = TASK.problems("train", 400, seed=7)


def answer(expression: str) -> str:
    return f"<think>let me see</think>\n<answer>{expression}</answer>"


def reachable(numbers: list[int]) -> set[Fraction]:
    """All that the numbers can make, each used once, by trying everything."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [numbers[k] for k in range(len(numbers)) if k not in (i, j)]
        a, b = numbers[i], numbers[j]
        for value in (a + b, a - b, a * b, *([Fraction(a) / b] if b else [])):
            found |= reachable([*rest, value])
    return found


@given(st.sampled_from(PROBLEMS))
@settings(max_examples=150)
def test_a_problem_is_solved_by_its_own_solution_alone(problem):
    data = problem.data
    assert TASK.reward(answer(data["solution"]), problem) == pytest.approx(1.1)
    wrong_target = Problem(problem.prompt, {**data, "target": data["target"] + 1})
    one_more = Problem(problem.prompt, {**data, "numbers": [*data["numbers"], 1]})
    another = Problem(problem.prompt, {**data, "numbers": [data["numbers"][0] + 1, *data["numbers"][1:]]})
    for other in (wrong_target, one_more, another):
        assert TASK.reward(answer(data["solution"]), other) == pytest.approx(0.1)


def test_problems_are_what_the_task_says_they_are():
    for problem in task_named("countdown").problems("train", 60, seed=2):
        numbers, target = problem.data["numbers"], problem.data["target"]
        assert len(numbers) in (3, 4) and all(1 <= number <= 99 for number in numbers) and 10 <= target <= 100
        assert str(numbers) in problem.prompt and f"equals {target}." in problem.prompt
        assert problem.data["solution"] not in problem.prompt
        if len(numbers) == 3:
            assert target in reachable(numbers)


def test_numbers_in_another_order_do_not_cross_the_split():
    task = Countdown(sizes=(2,))  # a few thousand problems, of which these are many

    def identities(split, seeds):
        drawn = (problem.data for seed in seeds for problem in task.problems(split, 100, seed))
        return {(tuple(sorted(data["numbers"])), data["target"]) for data in drawn}

    train, test = identities("train", range(5)), identities("test", range(3))
    assert len(train) < 500 and len(test) < 300  # some were drawn again, so that a mixed split would show
    assert not train & test


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda t: f"-{t}"),
        ),
        max_leaves=8,
    )


@given(trees(st.integers(0, 60).map(str)))
@settings(max_examples=200)
def test_expressions_have_pythons_exact_value(text):
    if len(text) > LONGEST:
        return
    tree = parsed(text)
    try:
        expected = eval("".join(f"Fraction({part})" if part.isdigit() else part for part in tokens(text)))
    except ZeroDivisionError:
        with pytest.raises(Unusable, match="division by zero"):
            evaluate(tree)
    else:
        assert evaluate(tree) == expected
    assert sorted(numbers_in(tree)) == sorted(int(part) for part in tokens(text) if part.isdigit())


def tokens(text: str) -> list[str]:
    return ["".join(group) for _, group in itertools.groupby(text, lambda c: "digit" if c.isdigit() else object())]


@pytest.mark.parametrize(
    ("expression", "reward"),
    [
        ("(8 / 3) * 3 * 2", 0),  # 3 is used twice
        ("8 / 3 * 3", 1),
        (" ( 8 * 3 ) / 3 ", 1),
        ("-3 + 8 + 3", 1),
        ("+8 - 3 + 3", 1),
        ("8 - 3 + 3 + 0", 0),
        ("8", 0),
        ("8 = 8", 0),
        ("", 0),
        ("   ", 0),
    ],
)
def test_division_is_exact_and_every_number_counts(expression, reward):
    assert answer_reward(f"<answer>{expression}</answer>", [8, 3, 3], 8) == reward


def test_what_floating_point_takes_for_equal_is_not():
    assert answer_reward("<answer>1 / 3 * 3</answer>", [1, 3, 3], 1) == 1
    big = 10**9
    assert answer_reward(f"<answer>{big} * {big} + 1 - 1</answer>", [big, big, 1, 1], big * big) == 1
    assert answer_reward(f"<answer>{big} * {big} + 1 - 2</answer>", [big, big, 1, 2], big * big) == 0


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "9 ** 9 ** 9 ** 9",
        "9 // 2",
        "9 % 2",
        "1 << 99",
        "~1",
        "(1)(2)",
        "(1, 2)",
        "1 if 1 else 2",
        "1 < 2",
        "1; 2",
        "lambda: 1",
        "1e9",
        "1_0",
        "0x1f",
        "007",
        "1.5",
        "1j",
        "³ + 4",
        "３ + 4",
        "٣ + 4",
        "1\x004",
        "1 +",
        "(1",
        "# 1",
        "(" * 120 + "1" + ")" * 120,
        "-" * 250 + "1",
        "+".join("1" * 200),
        "1+" * 10**6 + "1",
        "9" * 5000,
        "",
    ],
)
def test_hostile_texts_are_worth_nothing_and_harm_nothing(text):
    assert answer_reward(f"<answer>{text}</answer>", [1, 2], 3) == 0
    try:
        value = evaluate(parsed(text))
    except Unusable:
        return
    assert value in (1, 200)  # two of these texts are honest arithmetic


@given(st.text(alphabet="0123456789+-*/() \n", max_size=60))
@settings(max_examples=200)
def test_no_text_raises_anything_but_unusable(text):
    try:
        evaluate(parsed(text))
    except Unusable:
        assert answer_reward(f"<answer>{text}</answer>", [1, 2], 3) == 0


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think>\n<answer>b</answer>", 1),
        ("  <think>a</think><answer>b</answer>\n", 1),
        ("<think></think> <answer></answer>", 1),
        ("<think>a</think> so <answer>b</answer>", 0.6),
        ("Well. <think>a</think><answer>b</answer>", 0.6),
        ("<think>a</think><answer>b</answer> there", 0.6),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.6),
        ("<answer>b</answer><think>a</think>", 0.6),
        ("<think>a</think>", 0.1),
        ("<think>a", 0),
        ("</think><think>", 0),
        ("<answer>b</answer>", 0.5),
        ("<answer>b", 0),
        ("", 0),
    ],
)
def test_format(text, reward):
    assert format_reward(text) == pytest.approx(reward)


def test_the_last_answer_counts():
    assert answer_reward("<answer>1 + 2</answer> no: <answer>1 * 2</answer>", [1, 2], 3) == 0
    assert answer_reward("<answer>1 * 2</answer> no: <answer>1 + 2</answer>", [1, 2], 3) == 1


def test_long_hostile_texts_take_no_time():
    n, begun = 10_000, time.process_time()
    for text in ("<think>" * n, "<answer></think>" * n, "</answer>" * n + "<answer>" * n, "(" * 10 * n):
        assert task_named("countdown").reward(text, PROBLEMS[0]) < 0.1
    assert time.process_time() - begun < 2  # where time grows with the square, it is much more
