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

from eggroll.engine.annotations import PyTree
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy.noise.dense import noise_block, numbers, over_blocks, raw
from eggroll.strategy.plan.parameters import is_low
from eggroll.strategy.update.rounding import rounded_block


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
    wide, flat = accumulator_dtype(param.dtype), raw(param)
    rate = jnp.asarray(rate).astype(wide)

    def put(carry: PyTree, start: Any, count: int) -> Any:
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
def summed(keys: jax.Array, weights: jax.Array, rate: Any, *, distribution: str, like: PyTree) -> jax.Array:
    """`rate·Σ wᵤ·εᵤ` for a parameter of the shape and dtype of `like`; for the other arguments see `moved`."""
    wide, size = accumulator_dtype(like.dtype), int(np.prod(like.shape, dtype=np.int64))
    rate = jnp.asarray(rate).astype(wide)

    def put(out: jax.Array, start: Any, count: int) -> jax.Array:
        total = _sum(keys, weights.astype(wide), start, count, distribution)
        return lax.dynamic_update_slice(out, total * rate, (start,))

    return over_blocks(put, jnp.zeros(size, wide), size).reshape(like.shape)


def _sum(keys: jax.Array, weights: jax.Array, start: Any, count: int, distribution: str) -> jax.Array:
    """Unit after unit: the noise of one block is all that exists."""

    def add(unit: Any, total: jax.Array) -> jax.Array:
        return total + weights[unit] * noise_block(keys[unit], start, count, distribution, weights.dtype)

    return lax.fori_loop(0, weights.shape[0], add, jnp.zeros(count, weights.dtype))
