"""One generation: members answer their own prompts, fitness is the mean reward of a member, and numbers are counted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import eggroll
import eggroll.llm.finetuning.step as step_module
from eggroll.llm.answers.decoding import Answers, Decoding, generator, split
from eggroll.llm.finetuning.evaluation import Evaluator
from eggroll.llm.finetuning.step import Answered, draw_key, settled_together
from eggroll.llm.rewards.scoring import Rewards
from eggroll.llm.tasks import Problem
from eggroll.training import RunError, named
from eggroll.training.metrics import counted, counted_on, not_counted
from tests.llm.climbing import InProcess, asked, language, letters, marker

MAX_TOKENS, N = 4, 8


@cache
def parts() -> tuple[Any, Any, Any]:
    """The model, its parameters and what answers."""
    model = language()
    graphdef, params = split(model.model)
    return model, params, generator(graphdef, Decoding(MAX_TOKENS, stop=model.stop, pad=model.pad))


@cache
def strategy(groups: int = 2) -> eggroll.ES:
    """Always the same one, so that what it compiles is kept."""
    return eggroll.ES(
        population=N, sigma=0.3, optimizer=named("sgd", learning_rate=0.01), groups=groups, fallback="error"
    )


@cache
def greedy() -> Any:
    """Answers of one model, compiled."""
    return jax.jit(parts()[2])


def numbered(text: str, problem: Problem) -> float:
    """A reward that tells which answer goes with which problem."""
    return (1 + int(problem.prompt.split()[1])) * letters(text, problem)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_members_fitness_is_the_mean_reward_of_its_own_prompts(groups: int) -> None:
    model, params, fun = parts()
    es, marks = strategy(groups), marker(model, numbered)
    state, questions = es.init(params, jax.random.key(1)), asked(model, 4)
    moved, carry, metrics = Answered(fun, marks)(es, state, not_counted(), (questions,))
    members, own = es.ask(state), 4 // groups
    expected, written = [], 0
    for i in range(N):
        group = slice(i // (N // groups) * own, (i // (N // groups) + 1) * own)
        rows = questions.take(range(4)[group])
        answers = greedy()(members.materialize(i), *rows.prompts)
        texts = marks.texts(answers)
        expected.append(np.mean([numbered(t, p) for t, p in zip(texts, rows.problems, strict=True)]))
        written += int(answers.length.sum())
    np.testing.assert_allclose(metrics["fitness"], expected, rtol=1e-6)
    assert len(set(expected)) > 2, "members should differ"
    assert metrics["tokens"] == written == counted(carry)
    assert metrics["answer_tokens"] == pytest.approx(written / (N * own))
    assert (metrics["reward_mean"], metrics["reward_best"]) == (metrics["fitness_mean"], metrics["fitness_best"])
    assert metrics["scorer_errors"] == 0 and metrics["tokens_per_second"] > 0
    assert int(moved.generation) == 1 and float(metrics["update_norm"]) > 0


def test_answers_that_cannot_be_scored_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, params, fun = parts()

    def reward(text: str, problem: Any) -> float:
        if problem.prompt.startswith("green"):
            raise ZeroDivisionError
        return letters(text, problem)

    es, step = strategy(), Answered(fun, marker(model, reward))
    state, carry = es.init(params, jax.random.key(1)), not_counted()
    for _ in range(2):
        state, carry, metrics = step(es, state, carry, (asked(model, 4),))
        assert metrics["scorer_errors"] == N // 2  # one of the two answers of each member of the first group
        assert np.isfinite(metrics["fitness"]).all() and metrics["nonfinite"] == 0
    assert caplog.text.count("4 of 16 answers could not be scored; the reward failed") == 1
    assert caplog.text.count("failing costs nothing more than they do. Give a --worst below every reward") == 1


def test_the_worst_reward_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def rewards(*values: float) -> Rewards:
        lost = np.isnan(values)
        return Rewards(np.array(values), int(lost.sum()), "it raised", lost)

    others = 0.25  # the least reward of another process
    monkeypatch.setattr("eggroll.llm.finetuning.step.gather", lambda value: np.array([value, others]))
    assert settled_together(rewards(0.5, np.nan)).tolist() == [0.5, 0.25]
    assert settled_together(rewards(np.nan, np.nan)).tolist() == [0.25, 0.25]  # one process alone may fail
    assert settled_together(rewards(0.5, np.nan), -1).tolist() == [0.5, -1]
    assert settled_together(rewards(0.5, np.nan), 0.4).tolist() == [0.5, 0.25]
    others = np.inf
    assert settled_together(rewards(np.nan, np.nan), -1).tolist() == [-1, -1]
    with pytest.raises(RunError, match="failed for all 2 answers; the first: it raised"):
        settled_together(rewards(np.nan, np.nan))


def test_a_later_generation_none_of_whose_answers_can_be_scored_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, params, fun = parts()
    working = [True]

    def reward(text: str, problem: Any) -> float:
        if not working[0]:
            raise OSError("the service is down")
        return letters(text, problem)

    es, step = strategy(), Answered(fun, marker(model, reward))
    start, batch = es.init(params, jax.random.key(1)), (asked(model, 4),)
    first, carry, _ = step(es, start, not_counted(), batch)
    working[0] = False
    second, carry, metrics = step(es, first, carry, batch)
    assert metrics["scorer_errors"] == 16 and np.isnan(metrics["reward_mean"]) and np.isnan(metrics["reward_best"])
    assert "no answer of a generation could be scored" in caplog.text
    assert int(second.generation) == 2
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)
    with pytest.raises(RunError, match="failed for all 16 answers"):
        step(es, start, not_counted(), batch)
    known = Answered(fun, marker(model, reward, worst=-3.0))
    assert known(es, start, not_counted(), batch)[2]["reward_mean"] == -3


def test_failed_answers_do_not_raise_a_held_out_reward() -> None:
    model, params, fun = parts()
    questions = asked(model, 4)

    def reward(text: str, problem: Any) -> float:
        if problem.prompt != questions.problems[2].prompt:
            raise ZeroDivisionError
        return 0.5

    unknown = Evaluator(fun, questions, marker(model, reward))(params)
    assert (unknown.reward, unknown.failed, unknown.rewards) == (0.5, 3, (None, None, 0.5, None))
    assert np.isnan(unknown.error)  # of a single answer
    sets = [replace(problem, of="ab"[number % 2]) for number, problem in enumerate(questions.problems)]
    known = Evaluator(fun, replace(questions, problems=tuple(sets)), marker(model, reward, worst=0.0))(params)
    assert (known.reward, known.failed, known.rewards) == (0.125, 3, (0, 0, 0.5, 0))
    assert known.record().items() >= {"test_reward/a": 0.25, "test_reward/b": 0}.items()
    nothing = Evaluator(fun, questions, marker(model, lambda text, problem: 1 / 0))(params)
    assert nothing.failed == 4 and nothing.numbers()["reward"] is None
    with pytest.raises(RunError, match="failed for all 4 answers; the first: the reward failed"):
        nothing.checked()


def test_an_answer_counts_a_floor_and_the_unperturbed_model_is_asked_where_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, params, fun = parts()
    whole, es, batch = step_module.generate, strategy(), (asked(model, 4),)
    monkeypatch.setattr(step_module, "FLOOR", 2)

    def short(*given: Any, **options: Any) -> Answers:
        answers = whole(*given, **options)
        return Answers(answers.tokens, np.ones_like(answers.length))

    monkeypatch.setattr(step_module, "generate", short)
    written: list[tuple[int, Any]] = []
    step = Answered(
        fun, marker(model), written=lambda *given: written.append(given), compared=lambda generation: generation == 2
    )
    first, carry, metrics = step(es, es.init(params, jax.random.key(1)), not_counted(), batch)
    assert (metrics["tokens"], metrics["answer_tokens"], step.comparison) == (2 * 16, 1, {})
    metrics = step(es, first, carry, batch)[2]
    expected = Evaluator(fun, batch[0], marker(model))(first.params).reward
    assert metrics["tokens"] == 2 * 32 and step.comparison == {"reward_unperturbed": pytest.approx(expected, abs=1e-6)}
    assert not np.isclose(metrics["reward_mean"], expected)
    assert [generation for generation, _ in written] == [1, 2] and written[1][1]["member"] == [*np.repeat(range(8), 2)]
    assert np.mean(written[1][1]["reward"]) == pytest.approx(float(metrics["reward_mean"]), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eggroll", "full-rank"])
def test_the_divergence_from_the_base_is_taken_off_each_members_reward(method: str) -> None:
    """It is that of dense members, whose logits NumPy compares."""
    model, params, fun = parts()
    of_full_rank = eggroll.FullRankES(population=N, sigma=0.3, learning_rate=0.1, groups=2)
    es, questions = strategy() if method == "eggroll" else of_full_rank, asked(model, 4)
    base = jax.tree.map(lambda x: 0.7 * x, params)
    state = es.init(params, jax.random.key(1))
    logs = jax.jit(lambda params, *rows: jax.nn.log_softmax(nnx.merge(fun.graphdef, params)(*rows)))
    plain = Answered(fun, marker(model))(es, state, not_counted(), (questions,))[2]
    metrics = Answered(fun, marker(model), kl=0.5, base=base)(es, state, not_counted(), (questions,))[2]
    expected = []
    for i in range(N):
        rows = questions.take(range(2) if i < N // 2 else range(2, 4))
        member = es.ask(state).materialize(i)
        answers = jax.device_get(greedy()(member, *rows.prompts))
        read = np.concatenate([rows.prompts.tokens, answers.tokens], 1)[:, :-1]
        here, there = (np.asarray(logs(weights, read, rows.prompts.start)) for weights in (member, base))
        each = (np.exp(here) * (here - there)).sum(-1)[:, rows.prompts.tokens.shape[1] - 1 :]
        lengths = answers.length.tolist()
        expected.append(np.mean([row[:count].mean() for row, count in zip(each, lengths, strict=True)]))
    np.testing.assert_allclose(metrics["fitness"], plain["fitness"] - 0.5 * np.array(expected), atol=1e-4)
    assert metrics["kl"] == pytest.approx(np.mean(expected), rel=1e-3) and metrics["kl"] > 0.01
    for name in ("reward_mean", "reward_best"):
        assert metrics[name] == pytest.approx(float(plain[name]), abs=1e-6)


@pytest.mark.slow
def test_draws_follow_the_key_and_the_generation() -> None:
    model, params, _ = parts()
    graphdef, _ = split(model.model)
    fun = generator(graphdef, Decoding(MAX_TOKENS, temperature=2.0, stop=model.stop, pad=model.pad))
    es = strategy()
    start = es.init(params, jax.random.key(1))

    def texts(seed: int, generations: int) -> list[list[str]]:
        marks, state = marker(model), start
        step = Answered(fun, marks, key=jax.random.key(seed))
        for _ in range(generations):
            state, _, _ = step(es, state, not_counted(), (asked(model, 4),))
        assert isinstance(marks.scorers, InProcess)
        return [call[0] for call in marks.scorers.calls]

    first, second = texts(0, 2)
    assert texts(0, 1) == [first] and first != second
    assert texts(1, 1) != [first]


def test_draws_have_a_key_of_their_own() -> None:
    key = jax.random.key(3)
    noise = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(10_000))
    draws = jax.random.key_data(draw_key(key))
    assert not (jax.random.key_data(noise) == draws).all(-1).any()


def test_tokens_are_counted_beyond_32_bits() -> None:
    carry = not_counted()
    for _ in range(5):
        carry = counted_on(carry, 2**31 - 1)
    assert counted(carry) == 5 * (2**31 - 1)
    assert carry.dtype == np.int32
