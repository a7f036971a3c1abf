"""One generation of fine-tuning: every member answers its prompts, and its fitness is the mean reward."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Answers, Generator
from eggroll.llm.answers.generation import explained, generate, generate_plain, population_fit
from eggroll.llm.answers.memory import Fit
from eggroll.llm.answers.prompts import Prompts
from eggroll.llm.finetuning.answering import Marker
from eggroll.llm.finetuning.questions import Questions
from eggroll.llm.finetuning.statistics import NAMES, divergences_of_members, read_at_once
from eggroll.llm.rewards.scoring import Rewards, all_failed
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State
from eggroll.training.metrics import counted, counted_on
from eggroll.training.processes.scoring import local_members, score
from eggroll.training.processes.talk import gather
from eggroll.training.steps import Step

LOGGER = logging.getLogger("eggroll")
FLOOR = 8  # of the longest answer's tokens an empty one counts one in so many
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
        kl: β, by which a member's divergence from `base` on its own answers, in nats a token, lowers its fitness; see
            `divergences_of_members`. Default 0: nothing is asked of it.
        base: parameters of the model that members are to stay near, with `kl`. Default None.
        compared: `compared(generation)`, asked before the update that makes a generation: True has the unperturbed
            model answer the same prompts, with the same draws, for `comparison`. Default None: never.
        written: `written(generation, columns)`, called with the answers of this process before the update that makes a
            generation: by column, the number of the `member`, `prompt`, `completion`, each of several rewards by its
            name (NaN where it does not apply) and `reward`. Default None.

    Attributes:
        comparison: of the last generation, `reward_unperturbed`: the mean reward of the unperturbed model on the same
            prompts, None if none could be scored; empty where it was not asked. Its tokens count nowhere.
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
        kl: float = 0.0,
        base: PyTree = None,
        compared: Callable[[int], bool] | None = None,
        written: Callable[[int, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._generator, self._marker, self._key = generator, marker, key
        self._at_once: dict[str, Any] = {"budget": budget, "chunk": chunk}
        self._kl, self._base, self._compared, self._written = kl, base, compared, written
        self.comparison: dict[str, float | None] = {}
        self._told = False  # of an error
        self._parts = [f"reward/{name}" for name in getattr(marker.scorers, "names", ())]
        self.recorded = (*type(self).recorded, *self._parts, *(("kl",) if kl else ()))

    def __call__(
        self, es: Strategy, state: State, carry: PyTree, batch: tuple[Questions]
    ) -> tuple[State, Any, Metrics]:
        """One generation; `carry` is from `eggroll.training.metrics.not_counted`."""
        start, (asked,) = time.perf_counter(), batch
        members, prompts = es.ask(state), in_groups(asked.prompts, es.groups)
        key = None if self._key is None else jax.random.fold_in(self._key, state.generation)
        answers = generate(members, self._generator, prompts, key=key, **self._at_once)
        far = None
        if self._kl:
            far = divergences_of_members(members, self._generator, prompts, answers, self._base, **self._at_once)
        fitness, failed, told = self._fitness(es, asked, answers, far, int(state.generation) + 1)
        written, spent = (int(jnp.sum(x)) for x in (answers.length, jnp.maximum(answers.length, self.floor)))
        seconds = self._compare(state, asked, key)
        with explained(f"{es.population} members were summed up", "use bfloat16 weights, or --optimizer sgd"):
            state, metrics = es.tell(state, members, fitness)
            jax.block_until_ready(state)
        carry = counted_on(carry, spent)
        measured = {
            "reward_mean": metrics["fitness_mean"],
            "reward_best": metrics["fitness_best"],
            "tokens": counted(carry),
            "tokens_per_second": written / (time.perf_counter() - start - seconds),
            "scorer_errors": failed,
            **told,
        }
        if failed == answers.length.size and self._marker.scorers.worst is None:
            measured |= {"reward_mean": np.nan, "reward_best": np.nan}
        return state, carry, {**metrics, **measured}

    @property
    def floor(self) -> int:
        """Tokens that an answer counts at least: an eighth of the most, so that empty ones end a budget, too."""
        return -(-self._generator.decoding.max_tokens // FLOOR)

    def check(self, es: Strategy, state: State, asked: Questions) -> Fit:
        """What is done at once; nothing is evaluated.

        Raises:
            RunError: memory does not suffice.
            ValueError: noise that does not fit the model.
        """
        members, prompts = es.ask(state), in_groups(asked.prompts, es.groups)
        if self._kl:
            read_at_once(members, self._generator, prompts, self._base, **self._at_once)
        return population_fit(members, self._generator, prompts, **self._at_once)

    def _compare(self, state: State, asked: Questions, key: jax.Array | None) -> float:
        """Has the unperturbed model answer the same prompts where that is due; the seconds that it took."""
        start, self.comparison = time.perf_counter(), {}
        if self._compared is None or not self._compared(int(state.generation) + 1):
            return 0.0
        answers = generate_plain(state.params, self._generator, asked.prompts, key=key, budget=self._at_once["budget"])
        rewards = self._marker.attempt(jax.device_get(answers), asked.problems)[1]
        worst = self._marker.scorers.worst
        values = rewards.values if worst is None else np.where(rewards.failures, worst, rewards.values)
        known = values[np.isfinite(values)]
        self.comparison = {"reward_unperturbed": round(float(known.mean()), 6) if known.size else None}
        return time.perf_counter() - start

    def _fitness(
        self, es: Strategy, asked: Questions, answers: Answers, far: jax.Array | None, generation: int
    ) -> tuple[np.ndarray, int, dict[str, float]]:
        """What every member is worth, how many answers had no reward, and what is recorded of them beside it.

        That is the mean of its rewards, less `far`, its divergence from the base. Each process scores the members it
        holds.
        """
        own, each = len(asked) // es.groups, es.population // es.groups
        mine, here = local_members(answers)
        problems = [p for m in mine // each for p in asked.problems[m * own : (m + 1) * own]]
        texts, rewards = self._marker.attempt(here, problems)
        values = settled_together(rewards, self._marker.scorers.worst, first=generation == 1)
        failed = int(gather(np.array(rewards.failed)).sum())
        if rewards.failed and not self._told:
            self._told = True  # later ones are in the metrics
            LOGGER.warning("%d of %d answers could not be scored; %s", rewards.failed, len(problems), rewards.error)
            self._warn_of_ties(rewards, values)
        if self._written is not None:
            columns = {"member": np.repeat(mine, own).tolist(), "prompt": [p.prompt for p in problems]}
            parts = {name: part.tolist() for name, part in rewards.parts.items()}
            self._written(generation, {**columns, "completion": texts, **parts, "reward": values.tolist()})
        fitness = of_members(answers, mine, values.reshape(-1, own).mean(1))
        told = dict(zip(self._parts, means(rewards.parts), strict=True))
        if far is not None:
            told |= {"reward_mean": float(fitness.mean()), "reward_best": float(fitness.max())}
            away = of_members(answers, mine, local_members(far)[1].mean(1))
            fitness, told["kl"] = fitness - self._kl * away, float(away.mean())
        told["groups_without_spread"] = int((np.ptp(np.reshape(fitness, (es.groups, each)), axis=1) == 0).sum())
        return fitness, failed, told | self._marker.statistics(here, texts).record()

    def _warn_of_ties(self, rewards: Rewards, values: np.ndarray) -> None:
        """Where failing is worth as much as an answer that was scored, it may be what is learnt."""
        same = int((values[~rewards.failures] == values[rewards.failures].max()).sum())
        if same:
            LOGGER.warning(
                "an answer whose scoring fails has the reward %g, as %d that were scored: failing costs nothing more "
                "than they do. Give a --worst below every reward, or have the reward say what such answers are worth",
                values[rewards.failures].max(),
                same,
            )


def of_members(answers: Answers, mine: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Numbers `[n]` of the members `mine` of this process as those `[N]` of all, the same in every process."""
    found = dict(zip(mine.tolist(), values.tolist(), strict=True))
    return score(answers.length, lambda _, member: found[member], numbered=True).fitness


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
