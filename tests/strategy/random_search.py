"""A third strategy: random search with Gaussian smoothing (Nesterov and Spokoiny, 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.full_rank_generation import full_rank_plan
from eggroll.strategy.members import Draw
from eggroll.strategy.methods import Method
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.population import Population
from eggroll.strategy.protocol import Strategy
from eggroll.strategy.state import State

METHOD = Method("random-search", f"{__name__}:RandomSearch", 8, lambda sigma, population, optimizer: 0.1)


def direction(key: jax.Array, i: Any, params: Any) -> Any:
    """`uᵢ`, normal, as the parameters."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(key, i), len(leaves))
    return tree.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


class Smoothed(Draw):  # members `θ + σ·uᵢ`
    def plan_for(self, params: Any, fun: Callable[..., Any] | None = None, rows: Rows | None = None) -> Any:
        return full_rank_plan(params, ())

    def member(self, plan: Any, params: Any, i: Any) -> Any:
        return jax.tree.map(lambda x, u: x + self.sigma * u, params, direction(self.key, i, params))

    def ready(self, plan: Any, params: Any, fun: Callable[..., Any], rows: Rows, chunk: Any, held: Any) -> Any:
        def one(i: Any, own: list[Any]) -> Any:
            return fun(self.member(plan, params, i), *rows.merged(own))

        every = jnp.arange(self.settings.size)
        return lambda args: jax.jit(jax.vmap(one))(every, replace(rows, args=args).of_members(0, len(every)))

    def gradient(self, plan: Any, params: Any, weights: jax.Array) -> Any:
        each = jax.vmap(lambda i, w: jax.tree.map(lambda u: -w * u, direction(self.key, i, params)))
        found = each(jnp.arange(self.settings.size), weights)
        return jax.tree.map(lambda x: x.mean(0) / self.sigma, found)


class RandomSearch(Strategy):  # `θ ← θ + α·mean(wᵢ·uᵢ)/σ`
    method = METHOD.name

    def __init__(self, *, population=8, sigma: Any = 0.05, learning_rate=0.1, shaping: Any = "zscore", groups=1):
        settings = Population(population, antithetic=False, distribution="normal", groups=groups)
        super().__init__(settings, sigma=sigma, shaping=shaping, rules=(), noise_reuse=1)
        self.learning_rate = learning_rate

    def init(self, params: Any, key: jax.Array) -> State:
        return self.first(params, self.plan_for(params), as_threefry(key))

    def first(self, params: Any, plan: Any, key: jax.Array) -> State:
        return State(params, (), (), key, jnp.zeros((), jnp.int32))

    def plan_for(self, params: Any, fun: Callable[..., Any] | None = None, rows: Rows | None = None) -> Any:
        return full_rank_plan(params, ())

    def options(self) -> dict[str, Any]:
        return {**super().options(), "method": self.method, "learning_rate": self.learning_rate}

    def draw(self, state: State) -> Smoothed:
        return Smoothed("RandomSearch", self.settings, self._key(state), self._sigma(state), self.cache)

    def follow(self, plan: Any, state: State, weights: Any, *, loss: Any, sigma: Any, some: Any = True) -> Any:
        drawn = Smoothed("RandomSearch", self.settings, self._key(state), sigma, self.cache)
        gradient = drawn.gradient(plan, state.params, weights)
        moved = jax.tree.map(lambda x, g: jnp.where(some, x - self.learning_rate * g, x), state.params, gradient)
        norm = jnp.sqrt(sum(jnp.sum(g.astype(jnp.float32) ** 2) for g in jax.tree.leaves(gradient)))
        norms = {"gradient_norm": norm, "update_norm": jnp.float32(self.learning_rate) * norm}
        return State(moved, (), (), state.key, state.generation + jnp.asarray(some).astype(jnp.int32)), norms
