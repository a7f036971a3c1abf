"""What kernels are compared with: seeded operands, the truth in float64, and a bound on what rounding may do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from eggroll.ops.seeded import Factor, Seeded, as_array

FLOAT32 = float(np.finfo(np.float32).eps)
# Products of float32 in default precision round both operands where the matrix unit does: to 10 bits (TF32), to 7.
OPERANDS = {"cpu": 0.0, "gpu": 2 * 2.0**-10, "tpu": 2 * 2.0**-7}


@dataclass(frozen=True)
class Shape:
    """One population's product.

    Attributes:
        units: that have factors of their own.
        signs: members that share a unit's factors.
        rows: of input that each member has.
        depth: inputs of the layer.
        columns: outputs of the layer.
        rank: of the factors.
    """

    units: int
    signs: int
    rows: int
    depth: int
    columns: int
    rank: int = 1

    @property
    def members(self) -> int:
        """Of the population."""
        return self.units * self.signs

    @property
    def name(self) -> str:
        """For test ids and tables."""
        return f"{self.units}x{self.signs} members, {self.rows} rows, {self.depth}x{self.columns}, rank {self.rank}"


def seeded(
    number: int, units: int, size: int, rank: int, distribution: str = "rademacher", dtype: DTypeLike = "float32"
) -> Seeded:
    """Keys of `units` streams."""
    keys = jax.random.split(jax.random.key(number, impl="threefry2x32"), units)
    return Seeded(jax.random.key_data(keys), size, rank, distribution, dtype)


def dot_operands(shape: Shape, distribution: str, dtype: DTypeLike, number: int = 0) -> tuple[Any, ...]:
    """`x [M, R, K]`, `w [K, N]`, both factors, `scale [M]`: signs alternate."""
    rng = np.random.default_rng(number)
    x = jnp.asarray(rng.normal(size=(shape.members, shape.rows, shape.depth)), dtype)
    w = jnp.asarray(rng.normal(size=(shape.depth, shape.columns)), dtype)
    left = seeded(2 * number, shape.units, shape.depth, shape.rank, distribution, dtype)
    right = seeded(2 * number + 1, shape.units, shape.columns, shape.rank, distribution, dtype)
    scale = jnp.asarray(0.3 * (-1.0) ** np.arange(shape.members), jnp.float32)
    return x, w, left, right, scale


def update_operands(shape: Shape, distribution: str, dtype: DTypeLike, number: int = 1) -> tuple[Any, ...]:
    """`weights [U]` and both factors."""
    weights = jnp.asarray(np.random.default_rng(shape.units).normal(size=shape.units), jnp.float32)
    left = seeded(number, shape.units, shape.depth, shape.rank, distribution, dtype)
    right = seeded(number + 1, shape.units, shape.columns, shape.rank, distribution, dtype)
    return weights, left, right


def dot_truth(
    x: Any, w: Any, left: Factor, right: Factor, scale: Any, members: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`(y, magnitude)` in float64: a member at a time, with the dense weight; of `members` alone where given."""
    x, w, scale = (np.asarray(a, np.float64) for a in (x, w, scale))
    a, b = (np.asarray(_numbers(f), np.float64) for f in (left, right))
    signs, large = len(x) // len(a), np.abs(w)
    y, size = [], []
    for member in range(len(x)) if members is None else members:
        own = scale[member] * a[member // signs], b[member // signs]
        rows, (own_left, own_right) = np.abs(x[member]), (np.abs(f) for f in own)
        y.append(x[member] @ (w + own[0] @ own[1].T))
        size.append(rows @ large + rows @ own_left @ own_right.T)
    return np.stack(y), np.stack(size)


def update_truth(
    weights: Any, left: Factor, right: Factor, accumulator: Any = None, rows: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`(update, magnitude)` in float64; of `rows` alone where given."""
    w, a, b = (np.asarray(v, np.float64) for v in (weights, _numbers(left), _numbers(right)))
    chosen = np.arange(a.shape[1]) if rows is None else np.asarray(rows)
    start = np.zeros(()) if accumulator is None else np.asarray(accumulator, np.float64)[chosen]
    weighted, flat = _flat(w[:, None, None] * a[:, chosen]), _flat(b)
    return weighted.T @ flat + start, np.abs(weighted).T @ np.abs(flat) + np.abs(start)


def dot_tolerance(shape: Shape, dtype: DTypeLike, *, operands: float = 0.0, roundings: int = 1) -> float:
    """What `lowrank_dot` may be off by, in units of the magnitude.

    Args:
        shape: of the product: a sum of `K + r` products in float32, and a few more operations.
        dtype: of the result.
        operands: rounding of the operands of a product, see `OPERANDS`.
        roundings: pairs of roundings to `dtype`: base product and result; parts of a sum that a library splits.
    """
    return (shape.depth + shape.rank + 4) * FLOAT32 + roundings * float(jnp.finfo(dtype).eps) + operands


def update_tolerance(units: int, rank: int, dtype: DTypeLike) -> float:
    """What `rank_update` may be off by: sums are float32, half precision noise times its weight is rounded."""
    half = 2 * float(jnp.finfo(dtype).eps) if jnp.dtype(dtype).itemsize == 2 else 0.0
    return (units * rank + 4) * FLOAT32 + half


_numbers = jax.jit(as_array)  # one program, and not one for each of its operations


def _flat(factor: np.ndarray) -> np.ndarray:
    """`[U, size, r]` → `[U·r, size]`."""
    return factor.transpose(0, 2, 1).reshape(-1, factor.shape[1])
