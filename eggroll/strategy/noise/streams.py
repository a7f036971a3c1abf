"""All random words of many units at once: one program however many parameters there are.

Every parameter has streams of its own (left factor, right factor, dense noise). The keys of a unit's streams are laid
beside each other, each as often as its stream has words, and threefry runs over the whole row once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.strategy.noise.threefry import columns_of, folded, words

LEFT, RIGHT, DENSE = 0, 1, 2  # sides of a parameter; part of what a seed means, so never renumbered
LONG = 4096  # words: shorter streams are one operation to compile; of longer ones the keys are not repeated in memory


class Stream(NamedTuple):
    """One source of words.

    Attributes:
        path: `path_hash` of the parameter's path.
        side: `LEFT`, `RIGHT` or `DENSE`.
        words: how many words a unit draws from it, for each matrix of a stack; 2 where it is not drawn but handed on.
        key: whether a unit's row holds the stream's own key, two words, for a kernel to draw from.
        stack: matrices of a stack, each with a key of its own; None: no stack.
    """

    path: int
    side: int
    words: int
    key: bool = False
    stack: int | None = None

    @property
    def matrices(self) -> int:
        """How many keys it has in a unit."""
        return 1 if self.stack is None else self.stack

    @property
    def width(self) -> int:
        """Words of a unit's row."""
        return self.words * self.matrices


@dataclass(frozen=True)
class Streams:
    """The streams of a plan, in any order; a unit's words lie in `place(i)` of its row."""

    streams: tuple[Stream, ...]

    @property
    def words(self) -> int:
        """Words of one unit, all streams together."""
        return sum(stream.width for stream in self.streams)

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
            places[i] = slice(start, start + self.streams[i].width)
            start += self.streams[i].width
        return places

    def draw(self, key: jax.Array, units: jax.Array) -> jax.Array:
        """Words of the given units.

        Word `w` of stream `s` of unit `u` is word `w` of `jax.random.bits(key, (n,), "uint32")` with the stream's key
        `fold_in(fold_in(fold_in(key, s.path), s.side), u)`; matrix `m` of a stack has `fold_in(that, m)`.

        Args:
            key: typed threefry key of shape `()`.
            units: `[U]` integers.

        Returns:
            `[U, words]` uint32.
        """
        if not self.words:
            return jnp.zeros((units.shape[0], 0), jnp.uint32)
        used = [self.streams[i] for i in self._order if self.streams[i].width]
        path, side = (np.array([getattr(s, name) for s in used], np.uint32) for name in ("path", "side"))
        keys = folded(folded(jax.random.key_data(key), path), side)  # [2, streams]
        keys = folded(keys[:, None], units.astype(jnp.uint32)[:, None])  # [2, U, streams]
        keys, columns = _of_matrices(keys, used)
        parts, start = [], 0
        drawn = [s.words for s in used if not s.key for _ in range(s.matrices)]
        for _, run in groupby(drawn, lambda n: max(n, LONG)):
            lengths = list(run)
            parts.append(words(keys, columns[start : start + len(lengths)], lengths))
            start += len(lengths)
        if start < len(columns):
            own = columns_of(keys, columns[start:])
            parts.append(jnp.moveaxis(own, 0, -1).reshape(own.shape[1], -1))
        return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _of_matrices(keys: jax.Array, streams: Sequence[Stream]) -> tuple[jax.Array, np.ndarray]:
    """From the keys of streams `[2, U, streams]` to those of matrices, which of a stack are their own.

    Returns:
        (keys `[2, U, more]`, the column of each matrix in them).
    """
    if all(s.stack is None for s in streams):
        return keys, np.arange(len(streams))
    stacked = [i for i, s in enumerate(streams) for _ in range(s.stack or 0)]
    number = np.concatenate([np.arange(s.stack or 0, dtype=np.uint32) for s in streams])
    own = folded(columns_of(keys, stacked), number)
    rest = iter(range(len(streams), len(streams) + len(stacked)))
    order = [i if s.stack is None else next(rest) for i, s in enumerate(streams) for _ in range(s.matrices)]
    return jnp.concatenate([keys, own], axis=2), np.array(order)
