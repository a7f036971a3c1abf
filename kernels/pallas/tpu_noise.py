"""Noise made inside a TPU kernel, 128 columns at a time: threefry once a word, then lanes pick their word and field.

A gather along lanes stays within one register of 128 lanes. So words are made 128 at a time, from a counter that
starts where the group of columns starts; a word is made again only where the numbers of a column fill whole words.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.ops.noise import DISTRIBUTIONS, as_numbers, threefry2x32
from eggroll.ops.seeded import Seeded

from .tiling import Index

LANES, SUBLANES = 128, 8  # of a register
MADE = ("rademacher", "normal")  # what Mosaic is known to compile, bit for bit


def check_noise(*factors: Seeded) -> None:
    """Raises NotImplementedError for noise that is not made here."""
    for factor in factors:
        if factor.distribution not in MADE:
            raise NotImplementedError(f"{factor.distribution} noise: {' or '.join(MADE)}")


def tile(keys: jax.Array, first: Index, columns: int, factor: Seeded) -> list[jax.Array]:
    """Columns `first` to `first + columns − 1` of the transposed factors of several members.

    Args:
        keys: `[G, 2]` uint32.
        first: scalar, a multiple of 128; may be traced.
        columns: a multiple of 128. Beyond the factor's size the numbers are arbitrary, but finite.
        factor: what is drawn; its key is not used.

    Returns:
        Per rank `[G, columns]` float32.
    """
    if keys.shape[0] == 1:  # gathers want whole registers
        return [numbers[:1] for numbers in tile(jnp.broadcast_to(keys, (SUBLANES, 2)), first, columns, factor)]
    groups = range(columns // LANES)
    make = _shared_words if factor.rank * DISTRIBUTIONS[factor.distribution].bits < 32 else _own_words
    fields = make(keys, jnp.asarray(first, jnp.int32) // LANES, len(groups), factor)
    dtype = jnp.float32 if DISTRIBUTIONS[factor.distribution].integers else factor.dtype  # which any dtype holds
    return [
        as_numbers(jnp.concatenate(of_rank, axis=1), factor.distribution, dtype).astype(jnp.float32)
        for of_rank in zip(*fields, strict=True)
    ]


def _shared_words(keys: jax.Array, group: Index, groups: int, factor: Seeded) -> list[list[jax.Array]]:
    """Several columns share a word: `fields[group][rank]`."""
    width, rank = DISTRIBUTIONS[factor.distribution].bits, factor.rank
    numbers = 32 // width
    span = LANES * rank // numbers  # words of a group
    together = LANES // span  # groups whose words fill the lanes
    lane = _lanes(keys.shape[0])
    fields = []
    for start in range(0, groups, together):
        words = _words(keys, (group + start) * span + lane)
        for own in range(min(together, groups - start)):
            of_rank = []
            for j in range(rank):
                number = lane * rank + j
                picked = jnp.take_along_axis(words, own * span + number // numbers, axis=1)
                of_rank.append(_field(picked, number % numbers, width))
            fields.append(of_rank)
    return fields


def _own_words(keys: jax.Array, group: Index, groups: int, factor: Seeded) -> list[list[jax.Array]]:
    """A column has one word or more of its own: `fields[group][rank]`."""
    width, rank = DISTRIBUTIONS[factor.distribution].bits, factor.rank
    numbers = 32 // width
    fields = []
    for own in range(groups):
        column = (group + own) * LANES + _lanes(keys.shape[0])
        of_rank, made = [], {}
        for j in range(rank):
            # With whole words a column, numbers that share one are neighbours in `j`.
            at = j // numbers if rank % numbers == 0 else j
            if at not in made:
                made[at] = _words(keys, (column * rank + j) // numbers)
            of_rank.append(_field(made[at], (column * rank + j) % numbers, width))
        fields.append(of_rank)
    return fields


def _lanes(rows: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)


def _words(keys: jax.Array, count: jax.Array) -> jax.Array:
    first, second = threefry2x32((keys[:, :1], keys[:, 1:2]), (jnp.uint32(0), count.astype(jnp.uint32)))
    return first ^ second


def _field(words: jax.Array, place: jax.Array, width: int) -> jax.Array:
    return (words >> (place * width).astype(jnp.uint32)) & jnp.uint32(2**width - 1)
