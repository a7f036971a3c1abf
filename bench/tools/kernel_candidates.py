"""What `bench.kernels` times: plain products, and the kernels of every implementation; each with what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bench.tools import needs
from bench.tools.kernel_shapes import Shape
from bench.tools.linear import LEARNING_RATE, SIGMA, reduced
from bench.tools.needs import Need
from eggroll.kernels import implementations, rank_update
from eggroll.ops.cases import population_dot
from eggroll.ops.truth import seeded

INFERENCE, PRODUCT, SQUARE = "inference", "product of update shape", "square product"
BOTH = "inference and update without noise"
FORWARD, UPDATE, STEP = "lowrank_dot", "rank_update", "full step"
ON_THE_FLY, GIVEN = "on the fly", "given"


@dataclass(frozen=True)
class Candidate:
    """One line of the table.

    Attributes:
        operation: what it computes.
        call: without arguments.
        need: the least operations and bytes.
        implementation: of the kernels; empty for plain products.
        noise: where the factors come from; empty where there are none.
    """

    operation: str
    call: Callable[[], Any]
    need: Need
    implementation: str = ""
    noise: str = ""

    @property
    def name(self) -> str:
        """For timings and notes."""
        return ", ".join(part for part in (self.operation, self.implementation, self.noise) if part)


class Training:
    """Calls of `step(weight, *rest)`, each with the float32 weight that the last one left."""

    def __init__(self, step: Callable[..., jax.Array], weight: jax.Array, *rest: Any) -> None:
        self.step, self.rest = jax.jit(step, donate_argnums=0), rest
        self.weight = jnp.array(weight, jnp.float32, copy=True)

    def __call__(self) -> jax.Array:
        """One step."""
        self.weight = self.step(self.weight, *self.rest)
        return self.weight


def products(shape: Shape, dtype: str, square: int) -> list[Candidate]:
    """What kernels are measured against: products alone, of numbers that exist."""
    x, w = normal(0, (shape.members, shape.depth), dtype), weight(shape, dtype)
    terms = shape.units * shape.rank
    left, right = normal(1, (shape.depth, terms), dtype), normal(2, (terms, shape.columns), dtype)
    a, b = (normal(i, (square, square), dtype) for i in (3, 4))
    infer, summed = jax.jit(jnp.matmul), jax.jit(in_float32)
    forward = needs.product(shape.members, shape.depth, shape.columns, dtype)
    step = Training(without_noise, w, x, left, right)
    return [
        Candidate(INFERENCE, lambda: infer(x, w), forward),
        Candidate(PRODUCT, lambda: summed(left, right), needs.summed(shape.depth, terms, shape.columns, dtype)),
        Candidate(SQUARE, lambda: summed(a, b), needs.summed(square, square, square, dtype)),
        Candidate(BOTH, step, _step_need(shape, "rademacher", dtype, GIVEN)),
    ]


def kernels(shape: Shape, distribution: str, dtype: str, implementation: str) -> list[Candidate]:
    """What an implementation has of forward pass and update, and a full step, for both kinds of noise.

    In the step the reference does what the implementation does not have.
    """
    by = [implementation if implementation in implementations(name) else "reference" for name in (FORWARD, UPDATE)]
    sizes = shape.depth, shape.columns
    seeds = [seeded(i, shape.units, n, shape.rank, distribution, dtype) for i, n in enumerate(sizes)]
    x, w = normal(0, (shape.members, shape.rows, shape.depth), dtype), weight(shape, dtype)
    scale = SIGMA / shape.rank**0.5 * jnp.asarray((1.0, -1.0) * shape.units)
    scores = normal(5, (shape.units,), "float32")
    forward = jax.jit(partial(population_dot, implementation=by[0]))
    update = jax.jit(partial(rank_update, implementation=by[1]))
    step = partial(one_step, forward=by[0], update=by[1])
    found = []
    for noise, (left, right) in ((ON_THE_FLY, seeds), (GIVEN, [jax.jit(seed.array)() for seed in seeds])):
        calls = {
            FORWARD: partial(forward, x, w, left, right, scale),
            UPDATE: partial(update, scores, left, right),
            STEP: Training(step, w, x, left, right, scale),
        }
        for operation, call in calls.items():
            if operation in (FORWARD, UPDATE) and implementation not in implementations(operation):
                continue
            need = need_of(operation, shape, distribution, dtype, noise)
            found.append(Candidate(operation, call, need, implementation, noise))
    return found


def one_step(weight: Any, x: Any, left: Any, right: Any, scale: Any, *, forward: str, update: str) -> jax.Array:
    """The float32 `weight` after SGD on z-scored fitness, by an implementation of each operation."""
    outputs = population_dot(x, weight.astype(x.dtype), left, right, scale, implementation=forward)
    values = jnp.mean(reduced(outputs), axis=-1)
    scores = (values - jnp.mean(values)) / jnp.std(values)
    total = rank_update(scores[0::2] - scores[1::2], left, right, implementation=update)
    return weight + total * (LEARNING_RATE / (len(values) * SIGMA))


def without_noise(weight: jax.Array, x: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """The two products of a step and the weight's own update; the fitness depends on all outputs, as a step's does."""
    value = jnp.mean(reduced(x @ weight.astype(x.dtype)))
    return weight + in_float32(left, right) * (value * LEARNING_RATE)


def in_float32(left: jax.Array, right: jax.Array) -> jax.Array:
    """A product as `rank_update` sums it: nothing of float32 is rounded, and the result is float32."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.matmul(left, right, precision=precision, preferred_element_type=jnp.float32)


def need_of(operation: str, shape: Shape, distribution: str, dtype: str, noise: str) -> Need:
    """The least that a kernel has to do."""
    if operation == STEP:
        return _step_need(shape, distribution, dtype, noise)
    sizes = shape.depth, shape.columns, shape.rank
    rows = shape.members * shape.rows
    if noise == GIVEN:
        if operation == UPDATE:
            return needs.rank_update(shape.units, *sizes, dtype)
        return needs.forward(rows, shape.units, *sizes, dtype)
    if operation == UPDATE:
        return needs.rank_update_on_the_fly(shape.units, *sizes, distribution, dtype)
    return needs.forward_on_the_fly(rows, shape.units, *sizes, distribution, dtype)


def _step_need(shape: Shape, distribution: str, dtype: str, noise: str) -> Need:
    given = noise == GIVEN
    return needs.step(shape.members, shape.depth, shape.columns, shape.rank, distribution, dtype, given=given)


def normal(number: int, shape: Sequence[int], dtype: str) -> jax.Array:
    """Random numbers, as products of zeros run faster than they should."""
    return jax.random.normal(jax.random.key(number), tuple(shape), dtype)


def weight(shape: Shape, dtype: str) -> jax.Array:
    """`[K, N]`, of a size that keeps outputs near one."""
    return normal(9, (shape.depth, shape.columns), dtype) * jnp.asarray(shape.depth**-0.5, dtype)
