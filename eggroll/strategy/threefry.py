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
from eggroll.kernels import threefry2x32

Halves = tuple[Any, Any]  # of keys, or of a block: uint32 arrays


def folded(keys: Halves, data: Any) -> Halves:
    """`jax.random.fold_in` of keys and uint32 data that broadcast against each other."""
    if jax.default_backend() != "cpu":
        return _primitive(keys, data)
    both = _folded_apart(*keys, data)
    return both[0], both[1]


def words(keys: Halves, lengths: Sequence[int]) -> jax.Array:
    """`jax.random.bits` of keys `[U, K]`, as many as `lengths` says for each of the K: `[U, sum]` uint32."""
    count = np.concatenate([np.arange(n, dtype=np.uint32) for n in lengths])
    if len(set(lengths)) == 1:
        keys, count = (keys[0][..., None], keys[1][..., None]), count[: lengths[0]]
    else:
        keys = _repeat(keys[0], lengths), _repeat(keys[1], lengths)
    if jax.default_backend() == "cpu":
        out = _words_apart(*keys, count)
    else:
        first, second = _primitive(keys, count)
        out = first ^ second
    return out.reshape(out.shape[0], -1)


def words_from(key: Halves, first: Any, count: int) -> jax.Array:
    """Words `first` to `first + count − 1` of `jax.random.bits` of one key, `[count]`."""
    numbers = jnp.asarray(first).astype(np.uint32) + lax.iota(np.uint32, count)
    if jax.default_backend() == "cpu":
        return _words_apart(*key, numbers)
    one, two = _primitive(key, numbers)
    return one ^ two


def _repeat(keys: jax.Array, lengths: Sequence[int]) -> jax.Array:
    """`[U, K]` → `[U, sum]`: every column as often as its length says, in one kernel whatever K is."""
    columns = np.repeat(np.arange(len(lengths)), lengths)
    return keys.at[:, columns].get(mode="promise_in_bounds", indices_are_sorted=True)


def fold_in(key: jax.Array, data: Any) -> jax.Array:
    """`jax.random.fold_in` of one typed threefry key and an integer."""
    first, second = jax.random.key_data(key)
    halves = folded((first, second), jnp.asarray(data).astype(np.uint32))
    return jax.random.wrap_key_data(jnp.stack(halves), impl=jax.random.key_impl(key))


# Compiled on their own where nothing around them is: a call apart would be compiled at every call.
@jax.jit
def _folded_apart(first: jax.Array, second: jax.Array, count: jax.Array) -> jax.Array:
    """Both halves stacked: as one array they are one kernel to compile, as two they are two."""

    def stacked(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        a, b = threefry2x32((a, b), (np.uint32(0), c))
        half = lax.broadcasted_iota(np.int32, (2, *a.shape), 0)
        return jnp.where(half == 0, a, b)

    return call_apart(stacked, first, second, count)


@jax.jit
def _words_apart(first: jax.Array, second: jax.Array, count: jax.Array) -> jax.Array:
    def both(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        a, b = threefry2x32((a, b), (np.uint32(0), c))
        return a ^ b

    return call_apart(both, first, second, count)


def _primitive(keys: Halves, count: Any) -> Halves:
    # All operands or none must be batched: under a caller's vmap the primitive does not broadcast for itself.
    zero = (keys[0] & np.uint32(0)) | (count & np.uint32(0))
    first, second = threefry2x32_p.bind(keys[0] | zero, keys[1] | zero, zero, count | zero)
    return first, second
