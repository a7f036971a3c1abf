"""What full-rank ES does to one parameter: its update, rounded stochastically in half precision.

Small compiled calls, one after the other, so that no more than one parameter's numbers exist beside the copies.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from eggroll.engine.annotations import Index, PyTree, Scalar
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy.noise.dense import noise_block, numbers, over_blocks, raw
from eggroll.strategy.noise.keys import words_from
from eggroll.strategy.plan.parameters import is_low

ROUNDING = 3  # a parameter's stream for it, beside LEFT, RIGHT and DENSE


def rounded_block(value: jax.Array, dtype: DTypeLike, key: jax.Array, start: Index) -> jax.Array:
    """Rounds to one of the two neighbours in `dtype`, with the probabilities that make the mean `value`.

    In integers throughout: compilers leave out a conversion to half precision and back.

    Args:
        value: `[n]` float32.
        dtype: bfloat16 or float16.
        key: `[2]`, the parameter's.
        start: which of the parameter's elements is the first.

    Returns:
        `[n]` of `dtype`. What `dtype` can hold stays as it is; what is finite stays finite.

    References:
        S. Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv 1502.02551.
    """
    info = jnp.finfo(dtype)
    random = words_from(key, start, value.shape[0])
    raw = lax.bitcast_convert_type(value, jnp.uint32)
    sign, size = (raw >> np.uint32(16)) & np.uint32(0x8000), raw & np.uint32(0x7FFFFFFF)
    dropped = 23 - info.nmant
    bits = (size + (random >> np.uint32(32 - dropped))) >> np.uint32(dropped)
    if info.nexp < 8:  # another bias of the exponent, and subnormal numbers, whose bits count the smallest one
        bits = bits - np.uint32((127 + int(info.minexp) - 1) << info.nmant)
        share = (random >> np.uint32(8)).astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-24)
        counted = jnp.abs(value) / np.float32(info.smallest_subnormal) + share
        small = jnp.abs(value) < np.float32(info.tiny)
        bits = jnp.where(small, jnp.where(small, counted, 0).astype(jnp.int32).astype(jnp.uint32), bits)
    largest = lax.bitcast_convert_type(np.array(info.max, dtype), jnp.uint16).astype(jnp.uint32)
    rounded = lax.bitcast_convert_type((sign | jnp.minimum(bits, largest)).astype(jnp.uint16), dtype)
    return jnp.where(jnp.isfinite(value), rounded, value.astype(dtype))


@partial(jax.jit, static_argnames="distribution")
def moved(
    param: jax.Array, keys: jax.Array, rounding: jax.Array, weights: jax.Array, rate: Scalar, *, distribution: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`param + rate·Σ wᵤ·εᵤ` over the units, summed in float32 or wider.

    Args:
        param: the parameter; in half precision it is rounded stochastically.
        keys: `[U, 2]`, of the parameter's units.
        rounding: `[2]`, the parameter's key for that.
        weights: `[U]`, one per unit.
        rate: what the sum is multiplied by.
        distribution: of the noise.

    Returns:
        (the new parameter, the square of the sum's norm, the square of the change's norm).
    """
    wide, flat = accumulator_dtype(param.dtype), raw(param)
    rate = jnp.asarray(rate).astype(wide)

    def put(carry: PyTree, start: Index, count: int) -> Any:
        out, sums, changes = carry
        total = _sum(keys, weights.astype(wide), start, count, distribution)
        change = total * rate
        new = numbers(lax.dynamic_slice(flat, (start,), (count,)), param.dtype).astype(wide) + change
        new = rounded_block(new, param.dtype, rounding, start) if is_low(param) else new
        out = lax.dynamic_update_slice(out, raw(new), (start,))
        return out, sums + jnp.sum(total * total), changes + jnp.sum(change * change)

    zero = jnp.zeros((), wide)
    out, sums, changes = over_blocks(put, (jnp.zeros_like(flat), zero, zero), param.size)
    return numbers(out, param.dtype).reshape(param.shape), sums.astype(jnp.float32), changes.astype(jnp.float32)


@partial(jax.jit, static_argnames=("distribution", "like"))
def summed(keys: jax.Array, weights: jax.Array, rate: Scalar, *, distribution: str, like: PyTree) -> jax.Array:
    """`rate·Σ wᵤ·εᵤ` for a parameter of the shape and dtype of `like`; for the other arguments see `moved`."""
    wide, size = accumulator_dtype(like.dtype), int(np.prod(like.shape, dtype=np.int64))
    rate = jnp.asarray(rate).astype(wide)

    def put(out: jax.Array, start: Index, count: int) -> jax.Array:
        total = _sum(keys, weights.astype(wide), start, count, distribution)
        return lax.dynamic_update_slice(out, total * rate, (start,))

    return over_blocks(put, jnp.zeros(size, wide), size).reshape(like.shape)


def _sum(keys: jax.Array, weights: jax.Array, start: Index, count: int, distribution: str) -> jax.Array:
    """Unit after unit: the noise of one block is all that exists."""

    def add(unit: Index, total: jax.Array) -> jax.Array:
        return total + weights[unit] * noise_block(keys[unit], start, count, distribution, weights.dtype)

    return lax.fori_loop(0, weights.shape[0], add, jnp.zeros(count, weights.dtype))
