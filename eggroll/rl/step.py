"""Generations of rollouts, as steps of `fit`: in JAX as one compiled call, on the host through ask, apply and tell."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.engine.checks import as_count
from eggroll.rl.environments import Environment, check_environment, limit_of, observed
from eggroll.rl.normalise import Statistics, no_statistics, updated
from eggroll.rl.policies import Policy
from eggroll.rl.rollout import episodes, fitness_of
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State
from eggroll.training.metrics import counted, counted_on, not_counted
from eggroll.training.options import SettingsError, check_choice
from eggroll.training.steps import Step

Seeds = Literal["shared", "pair", "own"]
EPISODES, HELD_OUT = 0x65706973, 0x68656C64  # branches of the run's key; the noise of generation g has the branch g
LEAST = 16  # steps that an episode is never capped under


class Carry(NamedTuple):
    """What goes from generation to generation beside the parameters.

    Attributes:
        statistics: of observations.
        cap: float32, steps of an episode at most.
        steps: live steps so far, as two int32: `counted(carry.steps)`.
    """

    statistics: Any
    cap: Any
    steps: Any


class Rollouts(Step):
    """Every member plays episodes; its fitness is its mean return. All of a generation is one compiled call.

    Its carry, from `begin()`, holds the statistics of observations, which are a part of the policy.

    Args:
        environment: one in JAX. It is fixed from here on.
        policy: how to act in it.
        episodes: of a member in a generation, at least 1. Default 1.
        seeds: whether all members play the same episodes (`"shared"`), both of a pair do (`"pair"`, default), or none
            (`"own"`).
        cap: steps of an episode at most, at least 1; `"adaptive"`: twice as many as episodes of the generation before
            had in the mean; None (default): the environment's limit.
        normalise: whether observations are normalised. Default True.

    Raises:
        SettingsError: an environment or a cap that cannot be used.

    Example:
        See `eggroll.rl`.
    """

    recorded = ("live_steps", "episode_steps", "cap", "steps_per_second")

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        *,
        episodes: int = 1,
        seeds: Seeds = "pair",
        cap: int | Literal["adaptive"] | None = None,
        normalise: bool = True,
    ) -> None:
        check_environment(environment)
        self.policy = policy
        self.environment: Any = environment  # or one on the host
        self.episodes, self.normalise = as_count("episodes", episodes), normalise
        check_choice("seeds", seeds, Seeds)
        self.seeds: Seeds = seeds
        self.adaptive, self.limit = cap == "adaptive", _limit(environment, cap)
        self._prepare()

    def _prepare(self) -> None:
        what = {"normalise": self.normalise}
        self._fitness = fitness_of(episodes(self.environment, self.policy, greedy=False, **what))
        self._play = episodes(self.environment, self.policy, greedy=True, **what)

    def begin(self) -> Carry:
        """The carry of generation 0."""
        statistics = no_statistics(observed(self.environment)) if self.normalise else ()
        return Carry(statistics, jnp.float32(self.limit), not_counted())

    def keys(self, es: Strategy, state: State) -> tuple[jax.Array, int | None]:
        """Keys of the episodes that begin in a generation, `[episodes]` or `[members, episodes]`, and their axis."""
        rows = {"shared": 1, "pair": -(-es.population // 2), "own": es.population}[self.seeds]
        keys = episode_keys(state.key, EPISODES, state.generation, rows * self.episodes)
        if self.seeds == "shared":
            return keys, None
        keys = keys.reshape(rows, self.episodes)
        return (jnp.repeat(keys, 2, 0)[: es.population], 0) if self.seeds == "pair" else (keys, 0)

    def __call__(self, es: Strategy, state: State, carry: Carry, batch: tuple) -> tuple[State, Carry, Metrics]:
        """One generation."""
        start = time.perf_counter()
        keys, axis = self.keys(es, state)
        given = carry.statistics, jnp.int32(carry.cap), keys
        state, metrics = es.step(state, self._fitness, *given, in_axes=(None, None, axis), has_aux=True)
        means = metrics.pop("aux")
        members = es.population - int(metrics["nonfinite"])
        return self.after(state, carry, metrics, means, members, time.perf_counter() - start)

    def after(
        self, state: State, carry: Carry, metrics: Metrics, means: tuple[Any, Any], members: int, seconds: float
    ) -> tuple[State, Carry, Metrics]:
        """The carry and the metrics of a generation, from what `members` did in the mean, steps and sums."""
        statistics, steps = _after(carry.statistics, means, jnp.float32(members))
        steps, each = round(float(steps)), float(means[0]) / self.episodes
        cap = min(self.limit, max(LEAST, round(2 * each))) if self.adaptive and members else int(carry.cap)
        count = counted_on(carry.steps, steps)
        told = counted(count), each, int(carry.cap), steps / seconds
        metrics = {**metrics, **dict(zip(self.recorded, told, strict=True))}
        return state, Carry(statistics, jnp.float32(cap), count), metrics

    def greedy(self, params: PyTree, carry: Carry, key: jax.Array, count: int) -> np.ndarray:
        """Returns `[count]` of the policy without noise, which takes its best choices, in episodes of their own.

        Args:
            params: of the policy.
            carry: of the same generation.
            key: decides the episodes, other ones than those of a run with this key.
            count: of episodes.
        """
        keys = episode_keys(key, HELD_OUT, 0, count)
        return np.asarray(self._play(params, carry.statistics, jnp.int32(self.limit), keys).reward)


def _limit(environment: Any, cap: int | str | None) -> int:
    """Steps of an episode at most, whatever happens."""
    limit = limit_of(environment)
    if cap is not None and cap != "adaptive":
        cap = as_count("cap", cap)
        return cap if limit is None else min(cap, limit)
    if limit is None:
        raise SettingsError(
            f"got cap={cap!r} for an environment that tells no limit of its episodes; a number of steps is required, "
            "or an attribute `limit` of the environment."
        )
    return limit


@partial(jax.jit, static_argnums=3)
def episode_keys(key: jax.Array, branch: int, generation: Any, count: int) -> jax.Array:
    """Keys of episodes, of one branch of a key."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(as_threefry(key), branch), generation), count)


@jax.jit
def _after(statistics: Any, means: tuple[Any, Any], members: jax.Array) -> tuple[Any, jax.Array]:
    steps, sums = jax.tree.map(lambda x: jnp.where(members > 0, x * members, 0), means)
    return updated(statistics, sums) if isinstance(statistics, Statistics) else statistics, steps
