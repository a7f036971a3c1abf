"""Full-rank noise of one parameter, block by block: the numbers that `ES` gives a parameter under a `DenseRule`.

Element `e` of a member's noise depends on the key, the parameter's path, the member and `e` alone, so that a block can
be made anywhere, any number of times, and no more than a block has to exist.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from eggroll.engine.annotations import Index, PyTree, Scalar
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.engine.paths import path_hash
from eggroll.ops import unpack_flat, words_for
from eggroll.strategy.noise.keys import folded, words_from
from eggroll.strategy.noise.streams import DENSE
from eggroll.strategy.plan.leaves import Plan

CPU_BLOCK, BLOCK = 1 << 18, 1 << 24  # elements: a block's sums and words stay in a core's cache; fill an accelerator


def unit_keys(key: jax.Array, plan: Plan, units: int, side: int = DENSE) -> list[jax.Array]:
    """A key for each unit, which is a pair or a single member, of each parameter: `[U, 2]` uint32 per parameter.

    Args:
        key: typed threefry key of the generation.
        plan: names the parameters.
        units: how many.
        side: which of a parameter's streams.
    """
    hashes = np.array([path_hash(leaf.path) for leaf in plan.leaves], np.uint32)
    return _unit_keys(jax.random.key_data(key), hashes, np.uint32(side), np.arange(units, dtype=np.uint32))


@jax.jit
def _unit_keys(key: jax.Array, hashes: jax.Array, side: jax.Array, units: jax.Array) -> list[jax.Array]:
    own = folded(folded(key, hashes), side)
    return list(jnp.moveaxis(folded(own[:, :, None], units), 0, -1))


def noise_block(key: jax.Array, start: Index, count: int, distribution: str, dtype: DTypeLike) -> jax.Array:
    """Elements `start` to `start + count − 1` of a unit's noise.

    Args:
        key: `[2]`, from `unit_keys`.
        start: a multiple of 32; may be traced.
        count: how many.
        distribution: `"rademacher"` or `"normal"`.
        dtype: float32 or float64.

    Returns:
        `[count]`, of unit variance.
    """
    first = start // 32 * words_for(32, distribution)
    words = words_from(key, first, words_for(count, distribution))
    return unpack_flat(words, count, distribution, dtype)


def over_blocks(step: Callable[[Any, Any, int], Any], carry: PyTree, size: int) -> PyTree:
    """`step(carry, start, count)` over a parameter's elements, block after block.

    Args:
        step: takes a block into the carry.
        carry: arrays.
        size: elements of the parameter.

    Returns:
        The carry after the last block.
    """
    count = block_size(size)
    whole = size // count
    if whole == 1:
        carry = step(carry, np.int32(0), count)
    else:
        carry = lax.fori_loop(0, whole, lambda i, c: step(c, i * count, count), carry)
    return step(carry, np.int32(whole * count), size % count) if size % count else carry


def block_size(size: int) -> int:
    """Elements of a block: a multiple of 32, and if possible a divisor of `size`: no smaller rest to compile.

    Example:
        >>> block_size(1000)
        1000
    """
    limit = CPU_BLOCK if jax.default_backend() == "cpu" else BLOCK
    if size <= limit:
        return size
    least = -(-size // limit)
    for parts in range(least, 2 * least):
        if size % parts == 0 and size // parts % 32 == 0:
            return size // parts
    return limit


@partial(jax.jit, static_argnames="distribution", donate_argnames="old")
def perturbed(
    old: jax.Array, param: jax.Array, keys: jax.Array, unit: Index, sign: Index, scale: Scalar, *, distribution: str
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
    wide, flat = accumulator_dtype(param.dtype), raw(param)
    own, scale = keys[unit], jnp.asarray(scale).astype(wide) * jnp.asarray(sign).astype(wide)

    def put(out: jax.Array, start: Index, count: int) -> jax.Array:
        block = numbers(lax.dynamic_slice(flat, (start,), (count,)), param.dtype).astype(wide)
        seen = block + noise_block(own, start, count, distribution, wide) * scale
        return lax.dynamic_update_slice(out, raw(seen.astype(param.dtype)), (start,))

    return numbers(over_blocks(put, raw(old), param.size), param.dtype).reshape(param.shape)


def raw(x: jax.Array) -> jax.Array:
    """`[n]`, half precision as integers: on CPUs XLA would convert the whole array to float32 to write one block."""
    flat = x.reshape(-1)
    return lax.bitcast_convert_type(flat, jnp.uint16) if x.dtype.itemsize == 2 else flat


def numbers(flat: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The inverse of `raw`."""
    return flat if flat.dtype == dtype else lax.bitcast_convert_type(flat, dtype)
