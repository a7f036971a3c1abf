"""What every implementation of the kernels is asked to do: its numbers within a bound, its noise bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.tools import kernel_truth as truth
from bench.tools.kernel_calls import population_dot
from bench.tools.kernel_shapes import MIDDLE, PAPER, SMALL, Shape
from eggroll.kernels import Seeded, rank_update, unpack, words_for
from eggroll.ops.noise import DISTRIBUTIONS as KINDS

OPERATIONS = ("lowrank_dot", "rank_update")
DISTRIBUTIONS = ("rademacher", "normal")
DTYPES = ("float32", "bfloat16")
# Rows of the identity show the factors themselves. Ragged, a member has all the rows; in whole tiles, a row each of
# equal factors; at the paper's shape, where rounding hides what a few wrong numbers do to a product, one of its own.
NOISE = (
    Shape(units=3, signs=1, rows=70, depth=70, columns=150),
    Shape(units=128, signs=2, rows=1, depth=256, columns=384),
)


class Comparison(NamedTuple):
    """An operation and the truth about it.

    Attributes:
        function: of the operands.
        operands: arrays and `Seeded`.
        of: result → the part of it that is compared.
        wanted: that part's true value.
        bound: how far it may be off, elementwise; zero where bits have to agree.
    """

    function: Callable[..., jax.Array]
    operands: tuple[Any, ...]
    of: Callable[[Any], Any]
    wanted: np.ndarray
    bound: np.ndarray


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        operation: `lowrank_dot` or `rank_update`.
        shape: of the population's product.
        distribution: of the factors.
        dtype: of inputs, weight and factors.
        highest: whether products of float32 have to keep all of it; the device rounds operands otherwise.
        noise: whether the factors are to be seen bit for bit, instead of the numbers of a product.
    """

    operation: str
    shape: Shape
    distribution: str
    dtype: str
    highest: bool = False
    noise: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        kind = "noise bit for bit, " if self.noise else ""
        return (
            f"{kind}{self.shape.name}, {self.distribution}, {self.dtype}{', highest precision' if self.highest else ''}"
        )

    def comparison(self, implementation: str) -> Comparison:
        """The operation by that implementation, and the truth."""
        kind = self.operation, self.noise
        return _BUILD[kind](self, implementation)


def cases(operation: str, *, quick: bool = False) -> list[Case]:
    """All cases of an operation, the ones that matter most first; `quick`: some small ones."""
    kinds = list(itertools.product(DISTRIBUTIONS, DTYPES))
    if quick:
        kinds.remove(("normal", "bfloat16"))  # XLA's CPU compiler takes 15 s for it
    exact = [kind for kind in kinds if kind != ("normal", "float32")]  # products of two numbers are
    seen = NOISE if quick else (*NOISE, PAPER)
    found = [Case(operation, shape, *kind, noise=True) for shape in seen for kind in exact]
    shapes = SMALL[1:2] if quick else (*MIDDLE, PAPER, *SMALL)
    found += [Case(operation, shape, *kind) for shape in shapes for kind in kinds]
    if operation == "lowrank_dot":
        narrow = [shape for shape in shapes if shape in SMALL]
        found += [Case(operation, s, d, "float32", highest=True) for s in narrow for d in DISTRIBUTIONS]
    return found


def _dot_numbers(case: Case, implementation: str) -> Comparison:
    shape, dtype = case.shape, case.dtype
    operands = truth.dot_operands(shape, case.distribution, dtype)
    members = sorted({0, shape.members // 2, shape.members - 1})
    wanted, magnitude = truth.dot_truth(*operands, members=members)
    platform = jax.default_backend()
    rounded = dtype == "float32" and not case.highest
    tolerance = truth.dot_tolerance(
        shape,
        dtype,
        operands=truth.OPERANDS[platform] if rounded else 0.0,
        roundings=1 if platform == "cpu" else 2,  # a library may split the sum and round its parts
    )
    precision = jax.lax.Precision.HIGHEST if case.highest else None
    function = partial(population_dot, implementation=implementation, precision=precision)
    return Comparison(function, operands, lambda y: y[np.asarray(members)], wanted, tolerance * magnitude)


def _update_numbers(case: Case, implementation: str) -> Comparison:
    shape = case.shape
    weights, left, right = truth.update_operands(shape, case.distribution, case.dtype)
    whole = shape != PAPER
    rows = None if whole else [0, 1, 4097, shape.depth - 1]
    start = jnp.asarray(np.random.default_rng(1).normal(size=(shape.depth, shape.columns)), jnp.float32)
    accumulator = start if whole and shape.rank == 1 else None
    wanted, magnitude = truth.update_truth(weights, left, right, accumulator, rows)
    tolerance = truth.update_tolerance(shape.units, shape.rank, case.dtype)

    def function(weights: jax.Array, left: Seeded, right: Seeded, accumulator: Any) -> jax.Array:
        return rank_update(weights, left, right, accumulator=accumulator, implementation=implementation)

    of = (lambda y: y) if rows is None else (lambda y: y[np.asarray(rows)])
    return Comparison(function, (weights, left, right, accumulator), of, wanted, tolerance * magnitude)


def _dot_noise(case: Case, implementation: str) -> Comparison:
    """Without a weight, row `i` of the identity gives `±A[i]·Bᵀ`, of which each number is one exact product."""
    shape, dtype = case.shape, case.dtype
    seeds, (left, right) = _drawn(case)
    rows = shape.members * shape.rows
    row = np.arange(rows) * (1 if rows >= shape.depth else shape.depth // rows + 1) % shape.depth  # far apart if few
    unit = np.arange(shape.members) // shape.signs
    sign = (-1.0) ** np.arange(shape.members)
    x = jax.nn.one_hot(row, shape.depth, dtype=dtype).reshape(shape.members, shape.rows, shape.depth)
    operands = x, jnp.zeros((shape.depth, shape.columns), dtype), *seeds, jnp.asarray(sign, jnp.float32)
    inputs = left[unit[:, None], row.reshape(shape.members, shape.rows)] * sign[:, None]
    wanted = inputs[..., None] * right[unit][:, None]
    preferred = None if KINDS[case.distribution].integers else jnp.float32  # integers are exact in any dtype
    function = partial(population_dot, implementation=implementation, preferred_element_type=preferred)
    return Comparison(function, operands, lambda y: y, wanted, np.zeros(()))


def _update_noise(case: Case, implementation: str) -> Comparison:
    """Sums of small whole numbers are exact; of normal noise only what one unit adds is."""
    seeds, (left, right) = _drawn(case)
    weights = np.zeros(case.shape.units)
    if not KINDS[case.distribution].integers:
        weights[1] = 1.0
    else:
        weights += np.random.default_rng(2).integers(-4, 5, weights.shape)
    function = partial(rank_update, implementation=implementation)
    wanted = (weights[:, None] * left).T @ right
    return Comparison(function, (jnp.asarray(weights, jnp.float32), *seeds), lambda y: y, wanted, np.zeros(()))


def _drawn(case: Case) -> tuple[list[Seeded], list[np.ndarray]]:
    """Both factors, and their numbers `[U, size]` from what `jax.random.bits` gives."""
    shape, kind = case.shape, (case.distribution, case.dtype)
    distinct = 1 if shape == NOISE[1] else shape.units
    seeds, arrays = [], []
    for number, size in enumerate((shape.depth, shape.columns)):
        seed = truth.seeded(7 + number, distinct, size, 1, *kind)
        keys = jax.random.wrap_key_data(seed.key, impl="threefry2x32")
        count = words_for(size, seed.distribution)
        words = jax.vmap(lambda key, count=count: jax.random.bits(key, (count,), "uint32"))(keys)
        numbers = np.asarray(unpack(words, (seed.size, seed.rank), *kind), np.float64)[..., 0]
        seeds.append(replace(seed, key=jnp.repeat(seed.key, shape.units // distinct, axis=0)))
        arrays.append(np.repeat(numbers, shape.units // distinct, axis=0))
    return seeds, arrays


_BUILD: dict[tuple[str, bool], Callable[[Case, str], Comparison]] = {
    ("lowrank_dot", False): _dot_numbers,
    ("lowrank_dot", True): _dot_noise,
    ("rank_update", False): _update_numbers,
    ("rank_update", True): _update_noise,
}
