"""Random keys, and words of them: a stream is the path generation → parameter → side → member pair of `fold_in`.

On CPUs JAX rolls threefry's rounds into a loop over memory. Written out they are one operation, 8 times faster and a
third to compile; as a call apart, for fused into one another such operations take minutes to compile. Elsewhere the
primitive is as fast as the device makes it.

References:
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11 (threefry).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p

from eggroll.engine.annotations import Index
from eggroll.engine.checks import as_count
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
    out = _words(keys, count)
    return out.reshape(out.shape[0], -1)


def columns_of(keys: jax.Array, columns: Any) -> jax.Array:
    """`[2, U, K]` → `[2, U, C]`: the given columns, which may repeat, in one kernel however many they are."""
    columns = np.asarray(columns)
    if np.array_equal(columns, np.arange(keys.shape[-1])):
        return keys
    return keys.at[:, :, columns].get(mode="promise_in_bounds")


def words_from(key: jax.Array, first: Index, count: int) -> jax.Array:
    """Words `first` to `first + count − 1` of `jax.random.bits` of one key `[2]`: `[count]`."""
    return _words(key, jnp.asarray(first).astype(np.uint32) + lax.iota(np.uint32, count))


def _words(keys: jax.Array, count: Any) -> jax.Array:
    if jax.default_backend() == "cpu":
        return _words_apart(keys, count)
    first, second = _primitive((keys[0], keys[1]), count)
    return first ^ second


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


_IMPL = "threefry2x32"


def as_threefry(key: jax.Array) -> jax.Array:
    """Return `key` as a typed threefry2x32 key.

    Noise must be the same for a member evaluated alone, in a chunk, or on another device. Threefry keeps its
    bits under `jax.vmap`; the `rbg` and `unsafe_rbg` generators do not. A key of another implementation is
    therefore turned into a threefry key, by folding the words of its key data into `jax.random.key(0)`:
    deterministic, and different for different keys.

    Args:
        key: a typed key (`jax.random.key`) of shape `()`, or a legacy `jax.random.PRNGKey`, uint32 of shape
            `(2,)`, or `(4,)` where JAX's default generator is another. May be traced.

    Returns:
        A typed key of shape `()`. A threefry key, typed or legacy, keeps its key data.

    Raises:
        TypeError: `key` is not a key.
        ValueError: `key` is an array of keys, or a uint32 array of another shape.

    Example:
        >>> import jax
        >>> as_threefry(jax.random.PRNGKey(3)) == jax.random.key(3, impl="threefry2x32")
        Array(True, dtype=bool)
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape != ():
            raise ValueError(
                f"got an array of keys of shape {shape}; one key of shape () is required; pass one of them, "
                "keys[0], or make one with jax.random.key(0)"
            )
        return key if jax.random.key_impl(key) == _IMPL else _fold_words(jax.random.key_data(key))
    if dtype == np.uint32:
        default = jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
        if shape == (4,) and default != _IMPL:  # what PRNGKey then makes
            return _fold_words(jnp.asarray(key))
        if shape != (2,):
            raise ValueError(
                f"got a uint32 array of shape {shape}; a raw key has shape (2,); make one with "
                "jax.random.key(0), or wrap another generator's by jax.random.wrap_key_data(key, impl='rbg')"
            )
        return jax.random.wrap_key_data(jnp.asarray(key), impl=_IMPL)
    got = type(key).__name__ if dtype is None else f"{dtype} of shape {shape}"
    raise TypeError(f"got {got} as a key; a jax.random key is required; make one with jax.random.key(0)")


def _fold_words(words: jax.Array) -> jax.Array:
    key = jax.random.key(0, impl=_IMPL)
    for word in words.reshape(-1):
        key = jax.random.fold_in(key, word)
    return key


def generation_key(key: jax.Array, generation: int | jax.Array, noise_reuse: int = 1) -> jax.Array:
    """Return the key of one generation: `fold_in(key, ⌊generation / noise_reuse⌋)`.

    Args:
        key: the run's typed key, shape `()`.
        generation: the generation's number, from 0; a Python integer or an integer scalar, which may
            be traced.
        noise_reuse: how many successive generations share their noise; 1 draws afresh in each.

    Returns:
        A typed key of shape `()`.

    Raises:
        TypeError: `generation` is not an integer.
        ValueError: `noise_reuse` is not an integer of at least 1.

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> generation_key(key, 4, noise_reuse=4) == generation_key(key, 7, noise_reuse=4)
        Array(True, dtype=bool)
    """
    reuse = as_count("noise_reuse", noise_reuse, hint=" 1 gives fresh noise in every generation.")
    if not jnp.issubdtype(jnp.result_type(generation), jnp.integer):
        raise TypeError(f"got generation={generation!r}; an integer is required; count generations from 0")
    return fold_in(key, generation // reuse if reuse > 1 else generation)


def member_keys(stream: jax.Array, key: jax.Array, population: int, antithetic: bool) -> jax.Array:
    """Keys `[population, *shape]` of a stream of random numbers; a pair shares its own.

    Args:
        stream: typed key, or a stack of keys of any shape; of any generator, which the members' are of, too.
        key: typed threefry key of the generation, shape `()`.
        population: how many members.
        antithetic: whether members `2i` and `2i + 1` are a pair.
    """
    seed, signs = jax.random.bits(key, (), "uint32"), 2 if antithetic else 1

    def own(k: jax.Array, unit: Index) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(k, seed), unit)

    units, flat = jnp.arange(population // signs), stream.reshape(-1)
    keys = jax.vmap(jax.vmap(own, (0, None)), (None, 0))(flat, units)
    # Folded once for both of a pair: of equal keys in a batch, `unsafe_rbg` would make different ones.
    return jnp.repeat(keys, signs, 0).reshape(population, *stream.shape)
