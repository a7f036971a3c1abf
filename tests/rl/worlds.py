"""Small environments whose best return is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.rl import Box, Discrete, HostEnvironment, MultiDiscrete


class Line:
    """A walk on a line: right or left, a reward of 1 for every step towards a goal that lies on either side.

    Episodes last as long as the walker is not at 6 steps from the goal, 8 steps at most: the best return is `BEST`.
    """

    BEST = 8.0
    actions, limit = Discrete(2), 8

    def __init__(self, broken: bool = False, after: bool = False) -> None:
        self.broken, self.after = broken, after

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        side = jnp.where(jax.random.bernoulli(key), 100.0, -100.0)
        state = jnp.stack([jnp.float32(0), side, jnp.float32(0)])
        return state, self.seen(state)

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Any, Any, Any, Any]:
        place, side, ended = state
        move = jnp.where(action == 1, 1.0, -1.0)
        reward = move * jnp.sign(side)
        reward = jnp.where(ended > 0, jnp.nan, reward) if self.after else reward
        reward = jnp.full_like(reward, jnp.nan) if self.broken else reward
        place = place + move
        over = place * jnp.sign(side) <= -3  # three steps the wrong way
        state = jnp.stack([place, side, jnp.maximum(ended, over.astype(jnp.float32))])
        return state, self.seen(state), reward, over, jnp.array(False)

    @staticmethod
    def seen(state: jax.Array) -> dict[str, jax.Array]:
        return {"place": state[:1], "side": state[1]}


class Target:
    """A number within bounds has to be hit, which is shown: the reward is minus the distance."""

    actions, limit = Box(np.float32([-2, 0]), np.float32([2, 1])), 3

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        goal = jax.random.uniform(key, (2,))
        return goal, goal

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Any, Any, Any, Any]:
        return state, state, -jnp.abs(action - state).sum(), jnp.array(False), jnp.array(False)


class Forbidden(Line):
    """A line on which only the mask says where to go."""

    def mask(self, state: jax.Array) -> jax.Array:
        right = state[1] > 0
        return jnp.stack([~right, right])


class Both(Line):
    """Two choices at once, of which the first counts."""

    actions = MultiDiscrete((2, 3))

    def step(self, state: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Any, Any, Any, Any]:
        return super().step(state, action[0], key)


class OnHost:
    """The line as Gymnasium would have it, the side decided by the seed."""

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        self.state = np.float32([0, 100 if seed % 2 else -100])
        return self.state.copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert type(action) is int
        move = 1.0 if action else -1.0
        self.state[0] += move
        over = self.state[0] * np.sign(self.state[1]) <= -3
        return self.state.copy(), float(move * np.sign(self.state[1])), bool(over), False, {}

    def render(self) -> np.ndarray:
        return np.full((8, 8, 3), int(self.state[0]) + 100, np.uint8)

    def close(self) -> None:
        pass


def on_host() -> HostEnvironment:
    return HostEnvironment(lambda drawn=False: OnHost(), Discrete(2), np.zeros(2, np.float32), 8)
