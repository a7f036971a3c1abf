"""What full-rank ES does to one parameter: the copy that a member sees, and the update.

Small compiled calls, one after the other, so that no more than one parameter's numbers exist beside the copies.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy.full_rank_noise import noise_block, over_blocks
from eggroll.strategy.full_rank_rounding import rounded_block
from eggroll.strategy.plan.parameters import is_low


@partial(jax.jit, static_argnames="distribution", donate_argnames="old")
def perturbed(
    old: jax.Array, param: jax.Array, keys: jax.Array, unit: Any, sign: Any, scale: Any, *, distribution: str
) -> jax.Array:
    """`param + sign·scale·ε` of a unit, added in float32 or wider.

    Args:
        old: of the shape and dtype of `param`; its memory is used anew.
        param: the parameter.
        keys: `[U, 2]`, of the parameter's units.
        unit: number of the unit.
        sign: of the member.
        scale: σ.
        distribution: of the noise.
    """
    wide, flat = accumulator_dtype(param.dtype), _raw(param)
    own, scale = keys[unit], jnp.asarray(scale).astype(wide) * jnp.asarray(sign).astype(wide)

    def put(out: jax.Array, start: Any, count: int) -> jax.Array:
        block = _numbers(lax.dynamic_slice(flat, (start,), (count,)), param.dtype).astype(wide)
        seen = block + noise_block(own, start, count, distribution, wide) * scale
        return lax.dynamic_update_slice(out, _raw(seen.astype(param.dtype)), (start,))

    return _numbers(over_blocks(put, _raw(old), param.size), param.dtype).reshape(param.shape)


@partial(jax.jit, static_argnames="distribution")
def moved(
    param: jax.Array, keys: jax.Array, rounding: jax.Array, weights: jax.Array, rate: Any, *, distribution: str
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
    wide, flat = accumulator_dtype(param.dtype), _raw(param)
    rate = jnp.asarray(rate).astype(wide)

    def put(carry: Any, start: Any, count: int) -> Any:
        out, sums, changes = carry
        total = _sum(keys, weights.astype(wide), start, count, distribution)
        change = total * rate
        new = _numbers(lax.dynamic_slice(flat, (start,), (count,)), param.dtype).astype(wide) + change
        new = rounded_block(new, param.dtype, rounding, start) if is_low(param) else new
        out = lax.dynamic_update_slice(out, _raw(new), (start,))
        return out, sums + jnp.sum(total * total), changes + jnp.sum(change * change)

    zero = jnp.zeros((), wide)
    out, sums, changes = over_blocks(put, (jnp.zeros_like(flat), zero, zero), param.size)
    return _numbers(out, param.dtype).reshape(param.shape), sums.astype(jnp.float32), changes.astype(jnp.float32)


@partial(jax.jit, static_argnames=("distribution", "like"))
def summed(keys: jax.Array, weights: jax.Array, rate: Any, *, distribution: str, like: Any) -> jax.Array:
    """`rate·Σ wᵤ·εᵤ` for a parameter of the shape and dtype of `like`; for the other arguments see `moved`."""
    wide, size = accumulator_dtype(like.dtype), int(np.prod(like.shape, dtype=np.int64))
    rate = jnp.asarray(rate).astype(wide)

    def put(out: jax.Array, start: Any, count: int) -> jax.Array:
        total = _sum(keys, weights.astype(wide), start, count, distribution)
        return lax.dynamic_update_slice(out, total * rate, (start,))

    return over_blocks(put, jnp.zeros(size, wide), size).reshape(like.shape)


def _raw(x: jax.Array) -> jax.Array:
    """`[n]`, half precision as integers: on CPUs XLA would convert the whole array to float32 to write one block."""
    flat = x.reshape(-1)
    return lax.bitcast_convert_type(flat, jnp.uint16) if x.dtype.itemsize == 2 else flat


def _numbers(raw: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `_raw`."""
    return raw if raw.dtype == dtype else lax.bitcast_convert_type(raw, dtype)


def _sum(keys: jax.Array, weights: jax.Array, start: Any, count: int, distribution: str) -> jax.Array:
    """Unit after unit: the noise of one block is all that exists."""

    def add(unit: Any, total: jax.Array) -> jax.Array:
        return total + weights[unit] * noise_block(keys[unit], start, count, distribution, weights.dtype)

    return lax.fori_loop(0, weights.shape[0], add, jnp.zeros(count, weights.dtype))
