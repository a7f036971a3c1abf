"""Noise of one parameter and one pair by `jax.random` alone: what the library's one draw for all has to equal."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from eggroll.engine.paths import path_hash
from eggroll.ops.noise import unpack, words_for

LEFT, RIGHT, DENSE = range(3)


def key_of(key: jax.Array, path: str) -> jax.Array:
    """The key of one parameter."""
    return jax.random.fold_in(key, np.uint32(path_hash(path)))


def draw(key: jax.Array, shape: Sequence[int], distribution: str, dtype: str) -> jax.Array:
    """Noise of one stream."""
    size = 1
    for length in shape:
        size *= length
    with jax.threefry_partitionable(True):
        words = jax.random.bits(key, (words_for(size, distribution),), "uint32")
    return unpack(words, shape, distribution, dtype)


def low_rank_factors(
    leaf_key: jax.Array,
    pair: int | jax.Array,
    left_shape: Sequence[int],
    right_shape: Sequence[int],
    rank: int,
    distribution: str,
    dtype: str,
) -> tuple[jax.Array, jax.Array]:
    """One pair's factors of one parameter."""
    left = draw(stream(leaf_key, LEFT, pair), (*left_shape, rank), distribution, dtype)
    return left, draw(stream(leaf_key, RIGHT, pair), (*right_shape, rank), distribution, dtype)


def dense_noise(
    leaf_key: jax.Array, pair: int | jax.Array, shape: Sequence[int], distribution: str, dtype: str
) -> jax.Array:
    """One pair's dense noise of one parameter."""
    return draw(stream(leaf_key, DENSE, pair), shape, distribution, dtype)


def stream(leaf_key: jax.Array, side: int, pair: int | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(leaf_key, side), pair)
