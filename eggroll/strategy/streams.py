"""All random words of many units at once: one program however many parameters there are.

Every parameter has streams of its own (left factor, right factor, dense noise). The keys of a unit's streams are laid
beside each other, each as often as its stream has words, and threefry runs over the whole row once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

LEFT, RIGHT, DENSE = 0, 1, 2  # sides of a parameter; part of what a seed means, so never renumbered


class Stream(NamedTuple):
    """One source of words.

    Attributes:
        path: `path_hash` of the parameter's path.
        side: `LEFT`, `RIGHT` or `DENSE`.
        words: how many words a unit draws from it.
    """

    path: int
    side: int
    words: int


@dataclass(frozen=True)
class Streams:
    """The streams of a plan, in any order; a unit's words lie in `place(i)` of its row."""

    streams: tuple[Stream, ...]

    @property
    def words(self) -> int:
        """Words of one unit, all streams together."""
        return sum(stream.words for stream in self.streams)

    def place(self, i: int) -> slice:
        """Where stream `i` lies in a row."""
        return self._places[i]

    @cached_property
    def _order(self) -> list[int]:
        # Streams of the same length side by side: each length is one broadcast, not each stream.
        return sorted(range(len(self.streams)), key=lambda i: self.streams[i].words)

    @cached_property
    def _places(self) -> dict[int, slice]:
        places, start = {}, 0
        for i in self._order:
            places[i] = slice(start, start + self.streams[i].words)
            start += self.streams[i].words
        return places

    def draw(self, key: jax.Array, units: jax.Array) -> jax.Array:
        """Words of the given units.

        Word `w` of stream `s` of unit `u` is word `w` of
        `jax.random.bits(fold_in(fold_in(fold_in(key, s.path), s.side), u), (n,), "uint32")`.

        Args:
            key: typed threefry key of shape `()`.
            units: `[U]` integers.

        Returns:
            `[U, words]` uint32.
        """
        if not self.words:
            return jnp.zeros((units.shape[0], 0), jnp.uint32)
        used = [self.streams[i] for i in self._order if self.streams[i].words]
        keys = _threefry(_stream_keys(key, used), units.astype(jnp.uint32)[:, None])  # [U, streams]
        lengths = [s.words for s in used]
        counts = np.concatenate([np.arange(n, dtype=np.uint32) for n in lengths])
        first, second = _threefry((_repeat(keys[0], lengths), _repeat(keys[1], lengths)), counts)
        return first ^ second


def _stream_keys(key: jax.Array, streams: Sequence[Stream]) -> tuple[jax.Array, jax.Array]:
    """Per stream `fold_in(fold_in(key, path), side)`; a loop, so that threefry is compiled once for both."""
    folded = np.array([[s.path for s in streams], [s.side for s in streams]], np.uint32)
    first, second = jax.random.key_data(key)
    start = jnp.full(len(streams), first), jnp.full(len(streams), second)
    return jax.lax.scan(lambda keys, data: (_threefry(keys, data), None), start, folded)[0]


def _threefry(keys: tuple[jax.Array, jax.Array], count: Any) -> tuple[jax.Array, jax.Array]:
    """Encrypts counters below 2³²; the result is also `jax.random.fold_in(key, count)`, word by word."""
    # All operands or none must be batched: under a caller's vmap the primitive does not broadcast for itself.
    zero = (keys[0] & np.uint32(0)) | (count & np.uint32(0))
    first, second = threefry2x32_p.bind(keys[0] | zero, keys[1] | zero, zero, count | zero)
    return first, second


def _repeat(keys: jax.Array, lengths: Sequence[int]) -> jax.Array:
    """`[U, streams]` → `[U, words]`: every column as often as its stream has words; lengths ascend."""
    parts, start = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        part = keys[:, start : start + count, None]
        parts.append(jnp.broadcast_to(part, (*part.shape[:2], length)).reshape(keys.shape[0], -1))
        start += count
    return jnp.concatenate(parts, axis=1)
