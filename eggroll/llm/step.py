"""One generation of fine-tuning: every member answers its prompts, and its fitness is the mean reward."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.llm.answering import Marker, memory_explained
from eggroll.llm.decoding import Answers
from eggroll.llm.questions import Questions
from eggroll.strategy.es import ES, Metrics
from eggroll.strategy.inputs import make_rows
from eggroll.strategy.members import Members
from eggroll.strategy.state import State
from eggroll.training.processes_scoring import local_members, score
from eggroll.training.processes_talk import gather
from eggroll.training.steps import Step

LOGGER = logging.getLogger("eggroll")
BASE = 1 << 30  # tokens are counted in two numbers, as JAX has no 64-bit integers by itself


class Answered(Step):
    """Members answer prompts in JAX, and a task's scorer says in other processes how good each answer is.

    A batch is `Questions`. With `groups` of members they are divided among the groups, in order, and every member
    answers those of its group; else every member answers all. An answer whose scorer fails has the worst reward of the
    generation, and is counted.

    Args:
        fun: from `eggroll.llm.generator`.
        marker: what makes text and rewards of answers.
        key: for a temperature above 0; members of a group draw with the same numbers, so that they differ by their
            noise alone. Default None: greedy.
        at_once: prompts that a member answers at once. Default None: all of its own.
    """

    recorded = ("reward_mean", "reward_best", "answer_tokens", "tokens", "tokens_per_second", "scorer_errors")

    def __init__(
        self,
        fun: Callable[..., Answers],
        marker: Marker,
        *,
        key: jax.Array | None = None,
        at_once: int | None = None,
    ) -> None:
        self._fun, self._marker, self._key, self._at_once = fun, marker, key, at_once
        self._told = False  # of an error

    def __call__(self, es: ES, state: State, carry: Any, batch: tuple[Questions]) -> tuple[State, Any, Metrics]:
        """One generation; `carry` is from `no_tokens`."""
        start, (asked,) = time.perf_counter(), batch
        members = es.ask(state)
        with memory_explained(f"{es.population} members answered {len(asked)} prompts"):
            answers = self._answers(es, members, asked, state)
            fitness, failed = self._fitness(es, asked, answers)
            written = int(jnp.sum(answers.length))
            state, metrics = es.tell(state, members, fitness)
            jax.block_until_ready(state)
        carry = with_tokens(carry, written)
        return (
            state,
            carry,
            {
                **metrics,
                "reward_mean": metrics["fitness_mean"],
                "reward_best": metrics["fitness_best"],
                "answer_tokens": written / answers.length.size,
                "tokens": tokens_in(carry),
                "tokens_per_second": written / (time.perf_counter() - start),
                "scorer_errors": failed,
            },
        )

    def check(self, es: ES, params: Any, asked: Questions) -> None:
        """Raises ValueError for noise that does not fit the model; also fixes how each parameter is perturbed."""
        rows, axes = next(self._rows(es, asked, 0))
        es.plan_for(params, self._fun, make_rows(rows, axes, es.population, es.groups))

    def _answers(self, es: ES, members: Members, asked: Questions, state: State) -> Answers:
        """`tokens [population, prompts of a member, max_tokens]` and `length`."""
        parts = [
            members.apply(self._fun, *rows, in_axes=axes) for rows, axes in self._rows(es, asked, state.generation)
        ]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x, 1), *parts)

    def _rows(self, es: ES, asked: Questions, generation: Any) -> Iterator[tuple[tuple, tuple]]:
        """(arguments of `fun` after the parameters, their axes), for as many prompts as are answered at once."""
        own = len(asked) // es.groups
        tokens, pads = (x.reshape(es.groups, own, *x.shape[1:]) for x in asked.prompts)
        for first in range(0, own, self._at_once or own):
            part = slice(first, first + (self._at_once or own))
            rows, axes = (tokens[:, part], pads[:, part]), (0, 0)
            if es.groups == 1:
                rows, axes = (tokens[0, part], pads[0, part]), (None, None)
            if self._key is not None:
                key = jax.random.fold_in(jax.random.fold_in(self._key, generation), first)
                rows, axes = (*rows, key), (*axes, None)
            yield rows, axes

    def _fitness(self, es: ES, asked: Questions, answers: Answers) -> tuple[np.ndarray, int]:
        """Mean reward of every member, and how many answers had none; each process scores the members it holds."""
        own, each = len(asked) // es.groups, es.population // es.groups
        mine, here = local_members(answers)
        problems = [p for m in mine // each for p in asked.problems[m * own : (m + 1) * own]]
        rewards = self._marker.rewards(self._marker.texts(here), problems)
        failed = int(gather(np.array(rewards.failed)).sum())
        if rewards.failed and not self._told:
            self._told = True  # later ones are in the metrics
            LOGGER.warning("%d of %d answers could not be scored; %s", rewards.failed, len(problems), rewards.error)
        found = dict(zip(mine.tolist(), rewards.values.reshape(-1, own).mean(1).tolist(), strict=True))
        return score(answers.length, lambda _, member: found[member], numbered=True).fitness, failed


def no_tokens() -> np.ndarray:
    """What `Answered` carries from generation to generation, at the start."""
    return np.zeros(2, np.int32)


def with_tokens(carry: Any, more: int) -> np.ndarray:
    """The carry after `more` tokens."""
    return np.array(divmod(tokens_in(carry) + more, BASE), np.int32)


def tokens_in(carry: Any) -> int:
    """Tokens of generated answers so far, stop tokens included.

    Example:
        >>> tokens_in(with_tokens(with_tokens(no_tokens(), 2**31), 5)) - 2**31
        5
    """
    high, low = (int(x) for x in np.asarray(carry))
    return high * BASE + low
