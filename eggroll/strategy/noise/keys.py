"""Random keys: a stream is the path generation → parameter → side → member pair of `fold_in` from one key.

References:
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11 (threefry).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.paths import path_hash
from eggroll.strategy.noise.threefry import fold_in

_IMPL = "threefry2x32"


def as_threefry(key: jax.Array) -> jax.Array:
    """Return `key` as a typed threefry2x32 key.

    Noise must be the same for a member evaluated alone, in a chunk, or on another device. Threefry keeps its
    bits under `jax.vmap`; the `rbg` and `unsafe_rbg` generators do not. A key of another implementation is
    therefore turned into a threefry key, by folding the words of its key data into `jax.random.key(0)`:
    deterministic, and different for different keys.

    Args:
        key: a typed key (`jax.random.key`) of shape `()`, or a legacy `jax.random.PRNGKey`, uint32 of shape
            `(2,)`. May be traced.

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


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """Return the key of one parameter: `fold_in(key, path_hash(path))`.

    A parameter's noise depends on its own path alone, so a new parameter leaves the others' noise as it was.

    Args:
        key: the generation's typed key, shape `()`.
        path: the parameter's path.

    Returns:
        A typed key of shape `()`.

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> leaf_key(key, "a") == leaf_key(key, "b")
        Array(False, dtype=bool)
    """
    return jax.random.fold_in(key, np.uint32(path_hash(path)))


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
    if isinstance(noise_reuse, bool) or not isinstance(noise_reuse, int | np.integer) or noise_reuse < 1:
        raise ValueError(
            f"got noise_reuse={noise_reuse!r}; an integer of at least 1 is required; 1 gives fresh "
            "noise in every generation"
        )
    if not jnp.issubdtype(jnp.result_type(generation), jnp.integer):
        raise TypeError(f"got generation={generation!r}; an integer is required; count generations from 0")
    return fold_in(key, generation // int(noise_reuse))
