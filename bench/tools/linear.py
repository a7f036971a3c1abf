"""One linear layer with a row of input per member: what `bench.layer` and `bench.roofline` measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax

import eggroll
from eggroll.ops import unpack, words_for

SIGMA, LEARNING_RATE = 0.01, 1e-6  # so small that a thousand timed steps leave the weights finite


def product(params: Any, row: jax.Array) -> jax.Array:
    """The model of one member: `[K] → [N]`."""
    return row @ params["kernel"]


def fitness(params: Any, row: jax.Array) -> jax.Array:
    """The fitness of one member: minus the mean square of its output."""
    return reduced(product(params, row))


def reduced(outputs: jax.Array) -> jax.Array:
    """Outputs `[..., N]` to one fitness each, in float32."""
    return -jnp.mean(jnp.square(outputs.astype(jnp.float32)), axis=-1)


def launched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as it is; on an accelerator under `jax.jit`, since its Python would take longer than its products."""
    return function if jax.default_backend() == "cpu" else jax.jit(function)


@dataclass(frozen=True)
class Layer:
    """A square layer without bias, and a population to evaluate it.

    Attributes:
        width: inputs and outputs of the layer.
        population: members, even; each has one row of input.
        dtype: of weight, inputs and factors.
        rank: columns of each factor.
        distribution: of the factors.
        chunk: members at once in `es`, or `"auto"`.
    """

    width: int
    population: int
    dtype: str = "float32"
    rank: int = 1
    distribution: str = "rademacher"
    chunk: int | str = "auto"

    @property
    def pairs(self) -> int:
        """Antithetic pairs: draws of noise in a generation."""
        return self.population // 2

    @cached_property
    def inputs(self) -> jax.Array:
        """`[population, width]`."""
        return jax.random.normal(jax.random.key(1), (self.population, self.width), self.dtype)

    @cached_property
    def weight(self) -> jax.Array:
        """`[width, width]`."""
        shape = (self.width, self.width)
        return jax.random.normal(jax.random.key(0), shape, self.dtype) * jnp.asarray(self.width**-0.5, self.dtype)

    @cached_property
    def factors(self) -> tuple[jax.Array, jax.Array]:
        """Both `[pairs, width, rank]`, of unit variance: one draw for a pair of members."""
        shape, count = (self.width, self.rank), words_for(self.width * self.rank, self.distribution)
        words = (jax.random.bits(key, (self.pairs, count)) for key in jax.random.split(jax.random.key(2)))
        left, right = (unpack(each, shape, self.distribution, self.dtype) for each in words)
        return left, right

    @cached_property
    def es(self) -> eggroll.ES:
        """The strategy that draws its noise on the fly."""
        return eggroll.ES(
            population=self.population,
            sigma=SIGMA,
            rank=self.rank,
            optimizer=optax.sgd(LEARNING_RATE),
            distribution=self.distribution,
            chunk=self.chunk,
        )

    def state(self) -> eggroll.State:
        """The strategy's state of generation 0."""
        return self.es.init({"kernel": self.weight}, jax.random.key(3))

    def forward(self, weight: jax.Array, left: jax.Array, right: jax.Array, inputs: jax.Array) -> jax.Array:
        """Outputs `[population, width]` of all members with the given factors."""
        evaluate = eggroll.factored(product)
        scale = jnp.array([1, -1], self.dtype) * jnp.asarray(SIGMA / math.sqrt(self.rank), self.dtype)

        def member(left: jax.Array, right: jax.Array, scale: jax.Array, row: jax.Array) -> jax.Array:
            return evaluate({"kernel": eggroll.LowRank(weight, left, right * scale, (0,), (1,))}, row)

        pair = jax.vmap(member, in_axes=(None, None, 0, 0))
        rows = inputs.reshape(self.pairs, 2, self.width)
        return jax.vmap(pair, in_axes=(0, 0, None, 0))(left, right, scale, rows).reshape(self.population, -1)

    def forward_by_hand(self, weight: jax.Array, left: jax.Array, right: jax.Array, inputs: jax.Array) -> jax.Array:
        """The same as `forward` in plain `jnp`: base product, thin product, correction."""
        rows = inputs.reshape(self.pairs, 2, self.width)
        scale = jnp.array([1, -1], self.dtype)[:, None] * jnp.asarray(SIGMA / math.sqrt(self.rank), self.dtype)
        out = (inputs @ weight).reshape(rows.shape)
        for j in range(self.rank):
            thin = jnp.sum(rows * left[:, None, :, j], -1, keepdims=True) * scale
            out = out + thin * right[:, None, :, j]
        return out.reshape(self.population, -1)


def one_more_pass(inputs: jax.Array, weight: jax.Array) -> jax.Array:
    """The least that a correction reads and writes beside the product: all inputs and all outputs once, no noise."""
    return inputs @ weight + jnp.sum(inputs, -1, keepdims=True) * jnp.asarray(SIGMA, inputs.dtype)
