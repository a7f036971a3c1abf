"""One generation of fine-tuning: every member answers its prompts, and its fitness is the mean reward."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Answers, Generator
from eggroll.llm.answers.generation import explained, generate, population_fit
from eggroll.llm.answers.memory import Fit
from eggroll.llm.answers.prompts import Prompts
from eggroll.llm.finetuning.answering import Marker
from eggroll.llm.finetuning.questions import Questions
from eggroll.llm.finetuning.statistics import NAMES
from eggroll.llm.rewards.scoring import Rewards, all_failed
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State
from eggroll.training.metrics import counted, counted_on
from eggroll.training.processes.scoring import local_members, score
from eggroll.training.processes.talk import gather
from eggroll.training.steps import Step

LOGGER = logging.getLogger("eggroll")
DRAWS = 0x64726177  # the draws' branch of the key; the noise of generation g has the branch g


def draw_key(key: jax.Array) -> jax.Array:
    """The key of a run's draws, apart from that of every generation's noise."""
    return jax.random.fold_in(key, DRAWS)


class Answered(Step):
    """Members answer prompts in JAX, and a task's scorer says in other processes how good each answer is.

    A batch is `Questions`. With `groups` of members they are divided among the groups, in order, and every member
    answers those of its group; else every member answers all. An answer whose scorer fails is counted, and has the
    worst reward of the generation, or the worst that there can be where that is known. Where it is not, and no answer
    of a generation can be scored, this is an error in the first one; in a later one all members count the same.

    Args:
        generator: from `eggroll.llm.generator`.
        marker: what makes text and rewards of answers.
        key: for a temperature above 0; members of a group draw with the same numbers, so that they differ by their
            noise alone. Default None: greedy.
        budget: bytes that answering may take; see `eggroll.llm.generate`. Default None.
        chunk: members that answer at once. Default None: as many as fit.
    """

    recorded = ("reward_mean", "reward_best", "groups_without_spread", *NAMES)
    recorded += ("tokens", "tokens_per_second", "scorer_errors")

    def __init__(
        self,
        generator: Generator,
        marker: Marker,
        *,
        key: jax.Array | None = None,
        budget: float | None = None,
        chunk: int | None = None,
    ) -> None:
        self._generator, self._marker, self._key = generator, marker, key
        self._at_once: dict[str, Any] = {"budget": budget, "chunk": chunk}
        self._told = False  # of an error
        self._parts = [f"reward/{name}" for name in getattr(marker.scorers, "names", ())]
        self.recorded = (*type(self).recorded, *self._parts)

    def __call__(
        self, es: Strategy, state: State, carry: PyTree, batch: tuple[Questions]
    ) -> tuple[State, Any, Metrics]:
        """One generation; `carry` is from `eggroll.training.metrics.not_counted`."""
        start, (asked,) = time.perf_counter(), batch
        members = es.ask(state)
        key = None if self._key is None else jax.random.fold_in(self._key, state.generation)
        answers = generate(members, self._generator, in_groups(asked.prompts, es.groups), key=key, **self._at_once)
        fitness, failed, told = self._fitness(es, asked, answers, first=not int(state.generation))
        written = int(jnp.sum(answers.length))
        with explained(f"{es.population} members were summed up", "use bfloat16 weights, or --optimizer sgd"):
            state, metrics = es.tell(state, members, fitness)
            jax.block_until_ready(state)
        carry = counted_on(carry, written)
        known = failed < answers.length.size or self._marker.scorers.worst is not None
        measured = {
            "reward_mean": metrics["fitness_mean"] if known else np.nan,
            "reward_best": metrics["fitness_best"] if known else np.nan,
            "tokens": counted(carry),
            "tokens_per_second": written / (time.perf_counter() - start),
            "scorer_errors": failed,
            **told,
        }
        return state, carry, {**metrics, **measured}

    def check(self, es: Strategy, state: State, asked: Questions) -> Fit:
        """What is done at once; nothing is evaluated.

        Raises:
            RunError: memory does not suffice.
            ValueError: noise that does not fit the model.
        """
        return population_fit(es.ask(state), self._generator, in_groups(asked.prompts, es.groups), **self._at_once)

    def _fitness(
        self, es: Strategy, asked: Questions, answers: Answers, *, first: bool
    ) -> tuple[np.ndarray, int, dict[str, float]]:
        """Mean reward of every member, how many answers had none, and what is recorded of them beside it.

        Each process scores the members it holds.
        """
        own, each = len(asked) // es.groups, es.population // es.groups
        mine, here = local_members(answers)
        problems = [p for m in mine // each for p in asked.problems[m * own : (m + 1) * own]]
        texts, rewards = self._marker.attempt(here, problems)
        values = settled_together(rewards, self._marker.scorers.worst, first=first)
        failed = int(gather(np.array(rewards.failed)).sum())
        if rewards.failed and not self._told:
            self._told = True  # later ones are in the metrics
            LOGGER.warning("%d of %d answers could not be scored; %s", rewards.failed, len(problems), rewards.error)
        found = dict(zip(mine.tolist(), values.reshape(-1, own).mean(1).tolist(), strict=True))
        fitness = score(answers.length, lambda _, member: found[member], numbered=True).fitness
        told = dict(zip(self._parts, means(rewards.parts), strict=True))
        told["groups_without_spread"] = int((np.ptp(np.reshape(fitness, (es.groups, each)), axis=1) == 0).sum())
        return fitness, failed, told | self._marker.statistics(here, texts).record()


def means(parts: Mapping[str, np.ndarray]) -> list[float]:
    """The mean of each reward over the answers of all processes that it applies to; NaN where there is none."""
    if not parts:
        return []
    table = np.array(list(parts.values()))
    known = ~np.isnan(table)
    total, count = gather(np.array([np.where(known, table, 0).sum(1), known.sum(1)])).sum(0)
    return [float(a / b) if b else np.nan for a, b in zip(total, count, strict=True)]


def settled_together(rewards: Rewards, worst: float | None = None, *, first: bool = True) -> np.ndarray:
    """The rewards, those that failed being the worst of all processes, or `worst` if that is less.

    Where all failed in all processes and `worst` is None they are 0, and this is told.

    Raises:
        RunError: the same in the first generation: then it is the reward that is wrong.
    """
    finite = rewards.values[~rewards.failures]
    least = float(gather(np.array(finite.min() if finite.size else np.inf)).min())
    least = least if worst is None else min(least, worst)
    if np.isfinite(least):
        return np.where(rewards.failures, least, rewards.values)
    if first:
        raise all_failed(rewards)
    LOGGER.warning("no answer of a generation could be scored, so it says nothing of its members; %s", rewards.error)
    return np.zeros_like(rewards.values)


def in_groups(prompts: Prompts, groups: int) -> Prompts:
    """`[groups, prompts of a group, time]` where there are several groups."""
    if groups == 1:
        return prompts
    tokens, start = (x.reshape(groups, len(x) // groups, *x.shape[1:]) for x in prompts)
    return Prompts(tokens, start)
