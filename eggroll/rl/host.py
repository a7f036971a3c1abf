"""Generations of rollouts in environments on the host, each episode in an object of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.rl.environments import Box, as_floats
from eggroll.rl.normalise import Sums, normalised
from eggroll.rl.step import HELD_OUT, Carry, Rollouts, episode_keys
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State
from eggroll.training import processes
from eggroll.training.errors import RunError

SEEDS = 2**31  # as many as Gymnasium takes
Act = Callable[[Any, np.ndarray, int], tuple[Any, Any]]  # carries, observations and step → actions, carries
FIRST = None  # in place of carries, of a policy that has some: those of an episode's start


class HostRollouts(Rollouts):
    """As `Rollouts`, of an environment that no JAX function is: all members act at once, and the host steps.

    Its objects are made once, and begin an episode anew in every generation. Of one process alone.

    Args:
        environment: from `make("gymnasium:NAME")`, or one's own `HostEnvironment`.
        policy: how to act in it.
        **options: of `Rollouts`.
    """

    def _prepare(self) -> None:
        policy, normalise = self.policy, self.normalise

        def acts(greedy: bool) -> Callable[..., Any]:
            def one(params: PyTree, statistics: Any, carry: PyTree, seen: Any, key: jax.Array, step: Any) -> Any:
                seen = normalised(statistics, as_floats(seen)) if normalise else as_floats(seen)
                carry = policy.start(params) if carry is FIRST else carry
                draws = policy.sample and not greedy
                return policy.act(params, carry, seen, None, jax.random.fold_in(key, step) if draws else None)

            return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0, None)))

        self._act, self._greedy = acts(False), acts(True)
        self._objects: list[Any] = []

    def __call__(self, es: Strategy, state: State, carry: Carry, batch: tuple) -> tuple[State, Carry, Metrics]:
        """One generation."""
        if processes.count() > 1:
            raise RunError("got several processes for an environment on the host, which one alone can step: start one.")
        start, (keys, axis) = time.perf_counter(), self.keys(es, state)
        keys = jnp.broadcast_to(keys, (es.population, *keys.shape)) if axis is None else keys
        members, in_axes = es.ask(state).hold(), (None, 0, 0, 0, None)

        def act(carries: Any, seen: np.ndarray, step: int) -> tuple[Any, Any]:
            return members.apply(self._act, carry.statistics, carries, seen, keys, np.int32(step), in_axes=in_axes)

        rewards, steps, sums = self._played(act, keys, carry, int(carry.cap))
        state, metrics = es.tell(state, members, rewards.mean(1))
        means = jax.tree.map(lambda x: jnp.float32(x / es.population), (steps.sum(), sums))
        return self.after(state, carry, metrics, means, es.population, time.perf_counter() - start)

    def greedy(self, params: PyTree, carry: Carry, key: jax.Array, count: int) -> np.ndarray:
        """See `Rollouts.greedy`."""
        keys = episode_keys(key, HELD_OUT, 0, count)

        def act(carries: Any, seen: np.ndarray, step: int) -> tuple[Any, Any]:
            one = jax.tree.map(lambda x: x[0], carries)
            made = self._greedy(params, carry.statistics, one, seen[0], keys, np.int32(step))
            return jax.tree.map(lambda x: x[None], made)

        return self._played(act, keys[None], carry, self.limit)[0][0]

    def _played(self, act: Act, keys: jax.Array, carry: Carry, cap: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """Returns and steps `[members, episodes]`, and the sums of all observations."""
        shape, environment = keys.shape, self.environment
        seeds = np.asarray(jax.random.key_data(keys))[..., -1].reshape(-1) % SEEDS
        while len(self._objects) < seeds.size:
            self._objects.append(environment.make())
        seen = np.stack([self._objects[i].reset(seed=int(seed))[0] for i, seed in enumerate(seeds)])
        carries = FIRST if self.policy.recurrent else ()
        rewards, steps, live = np.zeros(seeds.size), np.zeros(seeds.size, np.int64), np.ones(seeds.size, bool)
        sums = _Sums(carry.statistics) if self.normalise else None
        for step in range(cap):
            if sums is not None:
                sums.note(seen[live])
            actions, carries = act(carries, seen.reshape(*shape, *seen.shape[1:]), step)
            actions = np.asarray(actions).reshape(seeds.size, *actions.shape[2:])
            for i in np.flatnonzero(live):
                given = actions[i] if isinstance(environment.actions, Box) or actions[i].ndim else int(actions[i])
                seen[i], reward, terminated, truncated, _ = self._objects[i].step(given)
                rewards[i], steps[i], live[i] = rewards[i] + reward, steps[i] + 1, not (terminated or truncated)
            if not live.any():
                break
        return rewards.reshape(shape), steps.reshape(shape), () if sums is None else sums.totals


class _Sums:
    """As `normalise.Sums`, of rows of observations on the host."""

    def __init__(self, statistics: Any) -> None:
        self._mean = np.asarray(statistics.mean, np.float64)
        self._count, self._deviations, self._squares = 0, np.zeros(self._mean.shape), np.zeros(self._mean.shape)

    def note(self, rows: np.ndarray) -> None:
        """One more step of each."""
        away = rows - self._mean
        self._count += len(rows)
        self._deviations, self._squares = self._deviations + away.sum(0), self._squares + (away**2).sum(0)

    @property
    def totals(self) -> Sums:
        """Those so far."""
        return Sums(np.float64(self._count), self._deviations, self._squares)
