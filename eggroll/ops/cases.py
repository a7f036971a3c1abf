"""What every implementation of an operation is asked to do: its numbers within a bound, its noise bit for bit.

`eggroll.ops.trials` asks it before a kernel is first used, `eggroll doctor` on request, and `bench.kernel_check` at all
shapes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.ops import truth
from eggroll.ops.noise import DISTRIBUTIONS, unpack, words_for
from eggroll.ops.operations import lowrank_dot, rank_update
from eggroll.ops.registry import current_platform, unchecked
from eggroll.ops.seeded import Seeded, as_array
from eggroll.ops.truth import Shape

# Rows of the identity show the factors themselves. Ragged, a member has all the rows; in whole tiles, a row each of
# equal factors; at the paper's shape, where rounding hides what a few wrong numbers do to a product, one of its own.
NOISE = (
    Shape(units=3, signs=1, rows=70, depth=70, columns=150),
    Shape(units=128, signs=2, rows=1, depth=256, columns=384),
)
LARGE = 1 << 24  # numbers of a weight, of which some rows are compared


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
        given: whether the factors are arrays, instead of keys.
    """

    operation: str
    shape: Shape
    distribution: str
    dtype: str
    highest: bool = False
    noise: bool = False
    given: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        kind = "noise bit for bit, " if self.noise else ""
        return f"{kind}{self.shape.name}, {self._of}"

    @property
    def kind(self) -> str:
        """The name without sizes and what is compared."""
        return f"{self._of}, rank {self.shape.rank}"

    @property
    def _of(self) -> str:
        more = ", highest precision" * self.highest + ", factors as arrays" * self.given
        return f"{self.distribution}, {self.dtype}{more}"

    @property
    def exact(self) -> bool:
        """Whether the sum of a unit's products of noise is exact in float32, so that bits have to agree."""
        if DISTRIBUTIONS[self.distribution].integers:
            return True
        return self.shape.rank == 1 and jnp.dtype(self.dtype).itemsize <= 2

    def comparison(self, implementation: str) -> Comparison:
        """The operation by that implementation, and the truth."""
        kind = self.operation, self.noise
        return _BUILD[kind](self, implementation)


def checked(case: Case, implementation: str) -> dict[str, Any]:
    """`verdict`: ok, wrong, cannot (NotImplementedError) or failed; with the reason, or the largest error.

    A failure has its `stage` (compile or run), and is `passing` where it says nothing of the kernel: memory was full.
    """
    with unchecked():
        return _checked(case.comparison(implementation))


def _checked(asked: Comparison) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        compiled = jax.jit(asked.function).lower(*asked.operands).compile()
    except NotImplementedError as error:
        return {"verdict": "cannot", "reason": str(error)}
    except Exception as error:  # of any kind: the next case may work
        return {"verdict": "failed", "stage": "compile", **_why(error)}
    compiled_after = time.perf_counter() - start
    start = time.perf_counter()
    try:
        result = jax.block_until_ready(compiled(*asked.operands))
        seconds = time.perf_counter() - start
        got = np.asarray(asked.of(result), np.float64)
    except Exception as error:
        return {"verdict": "failed", "stage": "run", **_why(error)}
    times = {"compile_seconds": round(compiled_after, 3), "run_seconds": round(seconds, 6)}
    return _judged(got, asked.wanted, asked.bound) | times


def _judged(got: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> dict[str, Any]:
    """Whether every number is within the bound; how much of it the worst one uses."""
    if got.shape != wanted.shape:
        return {"verdict": "wrong", "reason": f"shape {list(got.shape)} instead of {list(wanted.shape)}"}
    error, bound = np.where(np.isfinite(got), np.abs(got - wanted), np.inf), np.broadcast_to(bound, got.shape)
    right = error <= bound
    used = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
    worst = float(np.max(used))
    found = {"verdict": "ok" if np.all(right) else "wrong", "error_over_bound": worst if np.isfinite(worst) else None}
    if np.all(right):
        return found
    at = np.unravel_index(np.argmax(used), used.shape)
    example = f"such as {got[at]:.6g} instead of {wanted[at]:.6g}, which may be {bound[at]:.2g} off"
    return found | {"reason": f"{np.mean(~right):.2%} of the numbers beyond the bound, {example}"}


def _why(error: Exception) -> dict[str, Any]:
    """Kind and text of an exception, shortened."""
    text = str(error)
    reason = f"{type(error).__name__}: {text if len(text) <= 2000 else text[:1000] + ' … ' + text[-1000:]}"
    passing = isinstance(error, MemoryError | Warning) or "RESOURCE_EXHAUSTED" in text
    return {"reason": reason} | ({"passing": True} if passing else {})


def population_dot(x: jax.Array, w: jax.Array, left: Any, right: Any, scale: jax.Array, **options: Any) -> jax.Array:
    """Every member's `lowrank_dot` as the engine calls it: units under `vmap`, in them those that share its factors.

    Args:
        x: `[M, R, K]`; members of a unit are neighbours.
        w: `[K, N]`.
        left: `[U, K, r]`, or `Seeded` with keys `[U, 2]`.
        right: `[U, N, r]`, likewise.
        scale: `[M]`.
        **options: of `lowrank_dot`, such as `implementation`.

    Returns:
        `[M, R, N]`.
    """

    def member(left: Any, right: Any, x: jax.Array, scale: jax.Array) -> jax.Array:
        return lowrank_dot(x, w, left, right, scale=scale, **options)

    units = jax.tree.leaves(left)[0].shape[0]
    own = [a.reshape(units, -1, *a.shape[1:]) for a in (x, scale)]
    out = jax.vmap(jax.vmap(member, in_axes=(None, None, 0, 0)))(left, right, *own)
    return out.reshape(x.shape[0], *out.shape[2:])


def _dot_numbers(case: Case, implementation: str) -> Comparison:
    shape, dtype = case.shape, case.dtype
    operands = _asked(case, truth.dot_operands(shape, case.distribution, dtype))
    members = sorted({0, shape.members // 2, shape.members - 1})
    wanted, magnitude = truth.dot_truth(*operands, members=members)
    platform = current_platform()
    rounded = dtype == "float32" and not case.highest
    tolerance = truth.dot_tolerance(
        shape,
        dtype,
        operands=truth.OPERANDS.get(platform, truth.OPERANDS["tpu"]) if rounded else 0.0,
        roundings=1 if platform == "cpu" else 2,  # a library may split the sum and round its parts
    )
    precision = jax.lax.Precision.HIGHEST if case.highest else None
    function = partial(population_dot, implementation=implementation, precision=precision)
    return Comparison(function, operands, lambda y: y[np.asarray(members)], wanted, tolerance * magnitude)


def _update_numbers(case: Case, implementation: str) -> Comparison:
    shape = case.shape
    weights, left, right = _asked(case, truth.update_operands(shape, case.distribution, case.dtype))
    whole = shape.depth * shape.columns < LARGE
    rows = None if whole else [0, 1, shape.depth // 2 + 1, shape.depth - 1]
    accumulator = None
    if whole and shape.units % 2:  # so some shapes begin with something, others with nothing
        accumulator = jnp.asarray(np.random.default_rng(1).normal(size=(shape.depth, shape.columns)), jnp.float32)
    wanted, magnitude = truth.update_truth(weights, left, right, accumulator, rows)
    tolerance = truth.update_tolerance(shape.units, shape.rank, case.dtype)

    def function(weights: jax.Array, left: Any, right: Any, accumulator: Any) -> jax.Array:
        return rank_update(weights, left, right, accumulator=accumulator, implementation=implementation)

    of = (lambda y: y) if rows is None else (lambda y: y[np.asarray(rows)])
    return Comparison(function, (weights, left, right, accumulator), of, wanted, tolerance * magnitude)


def _asked(case: Case, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands, their factors as arrays where the case wants these."""
    return tuple(as_array(a) if case.given and isinstance(a, Seeded) else a for a in operands)


def _dot_noise(case: Case, implementation: str) -> Comparison:
    """Without a weight, row `i` of the identity gives `±A[i]·Bᵀ`: a number is one product for each rank."""
    shape, dtype = case.shape, case.dtype
    seeds, (left, right) = _drawn(case)
    rows = shape.members * shape.rows
    row = np.arange(rows) * (1 if rows >= shape.depth else shape.depth // rows + 1) % shape.depth  # far apart if few
    unit = np.arange(shape.members) // shape.signs
    sign = (-1.0) ** np.arange(shape.members)
    x = jax.nn.one_hot(row, shape.depth, dtype=dtype).reshape(shape.members, shape.rows, shape.depth)
    operands = x, jnp.zeros((shape.depth, shape.columns), dtype), *seeds, jnp.asarray(sign, jnp.float32)
    inputs = left[unit[:, None], row.reshape(shape.members, shape.rows)] * sign[:, None, None]

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a @ b[unit].swapaxes(1, 2)

    preferred = None if case.distribution == "rademacher" else jnp.float32  # ±1 is exact in any dtype
    function = partial(population_dot, implementation=implementation, preferred_element_type=preferred)
    return Comparison(function, operands, lambda y: y, *_truth(case, product, inputs, right))


def _update_noise(case: Case, implementation: str) -> Comparison:
    """Sums of small whole numbers are exact; of other noise only what one unit adds is."""
    seeds, (left, right) = _drawn(case)
    weights = np.zeros(case.shape.units)
    if case.distribution == "rademacher":
        weights += np.random.default_rng(2).integers(-4, 5, weights.shape)
    else:
        weights[1] = 1.0
    function = partial(rank_update, implementation=implementation)
    products = partial(np.tensordot, axes=((0, 2), (0, 2)))
    found = _truth(case, products, weights[:, None, None] * left, right)
    return Comparison(function, (jnp.asarray(weights, jnp.float32), *seeds), lambda y: y, *found)


def _truth(
    case: Case, product: Callable[[np.ndarray, np.ndarray], np.ndarray], a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A product of noise, and how far off it may be: not at all, or by what rounding does to a sum over ranks."""
    wanted = product(a, b)
    if case.exact:
        return wanted, np.zeros(())
    return wanted, (case.shape.rank + 1) * truth.FLOAT32 * product(np.abs(a), np.abs(b))


def _drawn(case: Case) -> tuple[list[Seeded], list[np.ndarray]]:
    """Both factors, and their numbers `[U, size, r]` from what `jax.random.bits` gives."""
    shape, kind = case.shape, (case.distribution, case.dtype)
    distinct = 1 if replace(shape, rank=1) == NOISE[1] else shape.units
    seeds, arrays = [], []
    for number, size in enumerate((shape.depth, shape.columns)):
        seed = truth.seeded(7 + number, distinct, size, shape.rank, *kind)
        numbers = np.asarray(_numbers(seed.key, (size, shape.rank), *kind), np.float64)
        seeds.append(replace(seed, key=jnp.repeat(seed.key, shape.units // distinct, axis=0)))
        arrays.append(np.repeat(numbers, shape.units // distinct, axis=0))
    return seeds, arrays


@partial(jax.jit, static_argnums=(1, 2, 3))  # one program, and not one for each of its operations
def _numbers(keys: jax.Array, shape: tuple[int, int], distribution: str, dtype: str) -> jax.Array:
    """`[U, *shape]`, of the words of `jax.random.bits`."""
    count = words_for(math.prod(shape), distribution)
    typed = jax.random.wrap_key_data(keys, impl="threefry2x32")
    return unpack(jax.vmap(lambda key: jax.random.bits(key, (count,), "uint32"))(typed), shape, distribution, dtype)


_BUILD: dict[tuple[str, bool], Callable[[Case, str], Comparison]] = {
    ("lowrank_dot", False): _dot_numbers,
    ("lowrank_dot", True): _dot_noise,
    ("rank_update", False): _update_numbers,
    ("rank_update", True): _update_noise,
}
