"""Episodes of a policy in an environment in JAX: one loop, whose rows are members and their episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eggroll.engine.annotations import PyTree
from eggroll.rl.environments import Environment, as_floats
from eggroll.rl.normalise import Statistics, Sums, no_sums, normalised, noted
from eggroll.rl.policies import Policy


class Episode(NamedTuple):
    """What an episode came to; of several, with a leading axis.

    Attributes:
        reward: the sum of its rewards, float32.
        steps: how many there were, int32.
        sums: of its observations, for the statistics.
    """

    reward: Any
    steps: Any
    sums: Any


class _At(NamedTuple):
    """Where an episode is."""

    state: Any
    observation: Any
    carry: Any
    ended: Any
    so_far: Episode


def episodes(environment: Environment, policy: Policy, *, greedy: bool, normalise: bool) -> Callable[..., Episode]:
    """A function that plays.

    Args:
        environment: fixed from here on: what is changed of it later is not seen.
        policy: likewise.
        greedy: whether the policy takes its best choices, though it may sample.
        normalise: whether observations are normalised, and their statistics made.

    Returns:
        `play(params, statistics, cap, keys)`: of a key for each episode `[E]`, the episodes `[E, ...]`, of `cap` steps
        (an int32) at most. It can be traced.
    """
    mask = getattr(environment, "mask", None)
    draws = policy.sample and not greedy

    def act(params: PyTree, statistics: Statistics, at: _At, key: jax.Array) -> tuple[Any, Any]:
        seen = normalised(statistics, at.observation) if normalise else at.observation
        return policy.act(params, at.carry, seen, mask and mask(at.state), key if draws else None)

    def turn(params: PyTree, statistics: Statistics, key: jax.Array, at: _At) -> _At:
        own = jax.random.split(jax.random.fold_in(key, at.so_far.steps))
        action, carry = act(params, statistics, at, own[0])
        state, observation, reward, terminated, truncated = environment.step(at.state, action, own[1])
        total, steps, sums = at.so_far
        sums = noted(sums, statistics, at.observation) if normalise else sums
        so_far = Episode(total + jnp.asarray(reward, jnp.float32), steps + 1, sums)
        new = _At(state, as_floats(observation), carry, jnp.logical_or(terminated, truncated), so_far)
        return jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, at)  # a loop's never change

    def one(params: PyTree, statistics: Statistics, cap: jax.Array, key: jax.Array) -> Episode:
        begin, key = jax.random.split(key)
        state, observation = environment.reset(begin)
        none = Episode(jnp.float32(0), jnp.int32(0), no_sums(statistics) if normalise else ())
        at = jax.tree.map(jnp.asarray, _At(state, as_floats(observation), policy.start(params), jnp.array(False), none))

        def goes_on(at: _At) -> jax.Array:
            return ~at.ended & (at.so_far.steps < cap)

        return jax.lax.while_loop(goes_on, lambda at: turn(params, statistics, key, at), at).so_far

    # What is jitted here counts as the same function from call to call without a look at all that it refers to.
    return jax.jit(jax.vmap(one, in_axes=(None, None, None, 0)))


def fitness_of(play: Callable[..., Episode]) -> Callable[..., tuple[jax.Array, tuple[jax.Array, Sums]]]:
    """The fitness of a member: its mean return; and its steps and sums, whose mean over members has to exist."""

    def fitness(params: PyTree, statistics: Statistics, cap: jax.Array, keys: jax.Array) -> Any:
        made = play(params, statistics, cap, keys)
        sums = jax.tree.map(lambda x: x.sum(0), made.sums)
        return made.reward.mean(), (made.steps.sum().astype(jnp.float32), sums)

    return jax.jit(fitness)
