"""Threefry as `jax.random` has it, for many keys at once: what folds keys, and what makes words.

On CPUs JAX rolls threefry's rounds into a loop over memory. Written out they are one operation, 8 times faster and a
third to compile; as a call apart, for fused into one another such operations take minutes to compile. Elsewhere the
primitive is as fast as the device makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p

from eggroll.engine.jax_compat import call_apart
from eggroll.ops import threefry2x32

Halves = tuple[Any, Any]  # of keys, or of a block: uint32 arrays


def folded(keys: jax.Array, data: Any) -> jax.Array:
    """`jax.random.fold_in` of keys `[2, ...]` and uint32 data that broadcast against each other: `[2, ...]`.

    Both halves are one array from end to end: as two they would be two kernels to compile.
    """
    if jax.default_backend() != "cpu":
        return jnp.stack(_primitive((keys[0], keys[1]), data))
    return _folded_apart(keys, data)


def words(keys: jax.Array, columns: Any, lengths: Sequence[int]) -> jax.Array:
    """`jax.random.bits` of the given columns of keys `[2, U, K]`, as many of each as its length says.

    Returns:
        `[U, sum of the lengths]` uint32.
    """
    count = np.concatenate([np.arange(n, dtype=np.uint32) for n in lengths])
    if len(set(lengths)) == 1:
        keys, count = columns_of(keys, columns)[..., None], count[: lengths[0]]
    else:
        keys = columns_of(keys, np.repeat(columns, lengths))
    if jax.default_backend() == "cpu":
        out = _words_apart(keys, count)
    else:
        first, second = _primitive((keys[0], keys[1]), count)
        out = first ^ second
    return out.reshape(out.shape[0], -1)


def columns_of(keys: jax.Array, columns: Any) -> jax.Array:
    """`[2, U, K]` → `[2, U, C]`: the given columns, which may repeat, in one kernel however many they are."""
    columns = np.asarray(columns)
    if np.array_equal(columns, np.arange(keys.shape[-1])):
        return keys
    return keys.at[:, :, columns].get(mode="promise_in_bounds")


def words_from(key: jax.Array, first: Any, count: int) -> jax.Array:
    """Words `first` to `first + count − 1` of `jax.random.bits` of one key `[2]`: `[count]`."""
    numbers = jnp.asarray(first).astype(np.uint32) + lax.iota(np.uint32, count)
    if jax.default_backend() == "cpu":
        return _words_apart(key, numbers)
    one, two = _primitive((key[0], key[1]), numbers)
    return one ^ two


@jax.jit
def fold_in(key: jax.Array, data: Any) -> jax.Array:
    """`jax.random.fold_in` of one typed threefry key and an integer."""
    both = folded(jax.random.key_data(key), jnp.asarray(data).astype(np.uint32))
    return jax.random.wrap_key_data(both, impl=jax.random.key_impl(key))


# Compiled on their own where nothing around them is: a call apart would be compiled at every call.
@jax.jit
def _folded_apart(keys: jax.Array, count: jax.Array) -> jax.Array:
    def stacked(keys: jax.Array, c: jax.Array) -> jax.Array:
        a, b = threefry2x32((keys[0], keys[1]), (np.uint32(0), c))
        half = lax.broadcasted_iota(np.int32, (2, *a.shape), 0)
        return jnp.where(half == 0, a, b)

    return call_apart(stacked, keys, count)


@jax.jit
def _words_apart(keys: jax.Array, count: jax.Array) -> jax.Array:
    def both(keys: jax.Array, c: jax.Array) -> jax.Array:
        a, b = threefry2x32((keys[0], keys[1]), (np.uint32(0), c))
        return a ^ b

    return call_apart(both, keys, count)


def _primitive(keys: Halves, count: Any) -> Halves:
    # All operands or none must be batched: under a caller's vmap the primitive does not broadcast for itself.
    zero = (keys[0] & np.uint32(0)) | (count & np.uint32(0))
    first, second = threefry2x32_p.bind(keys[0] | zero, keys[1] | zero, zero, count | zero)
    return first, second
