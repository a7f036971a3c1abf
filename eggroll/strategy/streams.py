"""All random words of many units at once: one program however many parameters there are.

Every parameter has streams of its own (left factor, right factor, dense noise). The keys of a unit's streams are laid
beside each other, each as often as its stream has words, and threefry runs over the whole row once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.strategy.threefry import folded, words

LEFT, RIGHT, DENSE = 0, 1, 2  # sides of a parameter; part of what a seed means, so never renumbered
LONG = 4096  # words: shorter streams are one operation to compile; of longer ones the keys are not repeated in memory


class Stream(NamedTuple):
    """One source of words.

    Attributes:
        path: `path_hash` of the parameter's path.
        side: `LEFT`, `RIGHT` or `DENSE`.
        words: how many words a unit draws from it; 2 of a stream that is not drawn but handed on.
        key: whether a unit's row holds the stream's own key, two words, for a kernel to draw from.
    """

    path: int
    side: int
    words: int
    key: bool = False


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
        # Streams of the same length side by side: each length is one broadcast, not each stream. Keys come last.
        return sorted(range(len(self.streams)), key=lambda i: (self.streams[i].key, self.streams[i].words))

    @cached_property
    def _places(self) -> dict[int, slice]:
        places, start = {}, 0
        for i in self._order:
            places[i] = slice(start, start + self.streams[i].words)
            start += self.streams[i].words
        return places

    def draw(self, key: jax.Array, units: jax.Array) -> jax.Array:
        """Words of the given units.

        Word `w` of stream `s` of unit `u` is word `w` of `jax.random.bits(key, (n,), "uint32")` with the stream's key
        `fold_in(fold_in(fold_in(key, s.path), s.side), u)`.

        Args:
            key: typed threefry key of shape `()`.
            units: `[U]` integers.

        Returns:
            `[U, words]` uint32.
        """
        if not self.words:
            return jnp.zeros((units.shape[0], 0), jnp.uint32)
        used = [self.streams[i] for i in self._order if self.streams[i].words]
        path, side = (np.array([getattr(s, name) for s in used], np.uint32) for name in ("path", "side"))
        first, second = jax.random.key_data(key)
        keys = folded(folded((first, second), path), side)  # [streams]
        first, second = folded(keys, units.astype(jnp.uint32)[:, None])  # [U, streams]
        parts, start = [], 0
        drawn = [s.words for s in used if not s.key]
        for _, run in groupby(drawn, lambda n: max(n, LONG)):
            lengths = list(run)
            place = slice(start, start + len(lengths))
            parts.append(words((first[:, place], second[:, place]), lengths))
            start = place.stop
        if start < len(used):
            both = jnp.stack([first[:, start:], second[:, start:]], axis=-1)
            parts.append(both.reshape(len(both), -1))
        return jnp.concatenate(parts, axis=1)
