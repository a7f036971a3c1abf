"""Both operations in plain `jax.numpy`: they run everywhere, and every kernel is tested against them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from eggroll.ops.registry import REFERENCE, register
from eggroll.ops.seeded import Factor, Seeded, as_array

# Up to this rank the outer product is written as multiplications, which XLA fuses into the addition to the
# base product; above it a matrix product wins (on a CPU of 2 cores: equal at rank 8, faster at 16).
LARGEST_FUSED_RANK = 4


@register("lowrank_dot", REFERENCE)
def lowrank_dot_reference(
    x: jax.Array,
    w: jax.Array,
    left: Factor,
    right: Factor,
    *,
    scale: jax.Array | None = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Compute `x·w + scale·(x·left)·rightᵀ`; see `eggroll.kernels.lowrank_dot`."""
    if isinstance(left, Seeded) and isinstance(right, Seeded):
        options = {"precision": precision, "preferred_element_type": preferred_element_type}
        return _all_members(x, w, left, right, scale, **options)
    left, right = as_array(left), as_array(right)
    base = lax.dot_general(x, w, _last_with(x, 0), precision=precision, preferred_element_type=preferred_element_type)
    accumulator = _accumulator_dtype(base, x, left, right)
    thin = _thin_product(x, left, precision, accumulator)
    if scale is not None:
        thin = thin * scale.astype(accumulator)  # not on `right`: it is larger, and the members of a pair share it
    correction = _outer_product(thin, right.astype(accumulator))
    return (base.astype(accumulator) + correction).astype(base.dtype)  # one rounding, at the end


@register("rank_update", REFERENCE)
def rank_update_reference(
    weights: jax.Array,
    left: Factor,
    right: Factor,
    *,
    accumulator: jax.Array | None = None,
) -> jax.Array:
    """Compute `Σₚ weightsₚ·leftₚ·rightₚᵀ`; see `eggroll.kernels.rank_update`."""
    left, right = as_array(left), as_array(right)
    inputs = (weights, left, right) if accumulator is None else (weights, left, right, accumulator)
    dtype = _accumulator_dtype(*inputs)
    weighted = weights.astype(dtype)[:, None, None] * left.astype(dtype)
    members_and_rank = (((0, 2), (0, 2)), ((), ()))
    update = lax.dot_general(weighted, right.astype(dtype), members_and_rank, precision=lax.Precision.HIGHEST)
    return update if accumulator is None else accumulator.astype(dtype) + update


def _all_members(
    x: jax.Array, w: jax.Array, left: Seeded, right: Seeded, scale: jax.Array | None, **options: Any
) -> jax.Array:
    """`x [M, R, K]`, keys `[U, 2]`, `scale [M]` → `[M, R, N]`; members of a unit are neighbours."""
    units = left.key.shape[0]

    def member(left: jax.Array, right: jax.Array, x: jax.Array, scale: jax.Array) -> jax.Array:
        return lowrank_dot_reference(x, w, left, right, scale=scale, **options)

    scale = jnp.ones(x.shape[0], jnp.float32) if scale is None else scale
    own = x.reshape(units, -1, *x.shape[1:]), scale.reshape(units, -1)
    unit = jax.vmap(member, in_axes=(None, None, 0, 0))
    return jax.vmap(unit)(left.array(), right.array(), *own).reshape(*x.shape[:2], w.shape[1])


def _thin_product(x: jax.Array, left: jax.Array, precision: Any, dtype: jnp.dtype) -> jax.Array:
    """Return `x·left`, of shape `[..., r]`, accumulated in `dtype`."""
    if x.dtype != left.dtype:
        x, left = x.astype(dtype), left.astype(dtype)
    return lax.dot_general(
        x, left, _last_with(x, 0), precision=_without_algorithm(precision), preferred_element_type=dtype
    )


def _outer_product(thin: jax.Array, right: jax.Array) -> jax.Array:
    """Return `thin·rightᵀ`, of shape `[..., N]`, for `thin` of shape `[..., r]`."""
    rank = right.shape[1]
    if rank > LARGEST_FUSED_RANK:
        return lax.dot_general(thin, right, _last_with(thin, 1), precision=lax.Precision.HIGHEST)
    total = thin[..., 0, None] * right[:, 0]
    for j in range(1, rank):
        total = total + thin[..., j, None] * right[:, j]
    return total


def _last_with(x: jax.Array, axis: int) -> lax.DotDimensionNumbers:
    """Return the dimension numbers that contract the last axis of `x` with `axis` of the other operand."""
    return (((x.ndim - 1,), (axis,)), ((), ()))


def _accumulator_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Return float64 if any array has it, else float32."""
    wide = any(a.dtype == jnp.float64 for a in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def _without_algorithm(precision: Any) -> Any:
    """Return `precision`, or HIGHEST for an algorithm, which fits the dtypes of the base product only."""
    if isinstance(precision, str):
        algorithms = lax.DotAlgorithmPreset.__members__
        return lax.Precision.HIGHEST if precision.upper() in algorithms else precision
    is_algorithm = isinstance(precision, lax.DotAlgorithm | lax.DotAlgorithmPreset)
    return lax.Precision.HIGHEST if is_algorithm else precision
