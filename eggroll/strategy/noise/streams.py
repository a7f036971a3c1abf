"""All random words of many units at once, one program however many parameters there are; and numbers of them.

Every parameter has streams of its own (left factor, right factor, dense noise). The keys of a unit's streams are laid
beside each other, each as often as its stream has words, and threefry runs over the whole row once. Every matrix of a
stack has a stream of its own; their words lie one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.paths import path_hash
from eggroll.ops import Seeded, unpack, words_for
from eggroll.strategy.noise.keys import columns_of, folded, words
from eggroll.strategy.plan.leaves import LeafPlan

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
    def order(self) -> list[int]:
        """The streams as they lie in a row."""
        # Streams of the same length side by side: each length is one broadcast, not each stream. Keys come last.
        return sorted(range(len(self.streams)), key=lambda i: (self.streams[i].key, self.streams[i].words))

    @cached_property
    def _places(self) -> dict[int, slice]:
        places, start = {}, 0
        for i in self.order:
            places[i] = slice(start, start + self.streams[i].width)
            start += self.streams[i].width
        return places

    def draw(self, key: jax.Array, units: jax.Array | np.ndarray) -> jax.Array:
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
        used = [self.streams[i] for i in self.order if self.streams[i].width]
        path, side = (np.array([getattr(s, name) for s in used], np.uint32) for name in ("path", "side"))
        keys = folded(folded(jax.random.key_data(key), path), side)  # [2, streams]
        keys = folded(keys, units.astype(jnp.uint32)[:, None])  # [2, U, streams]
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


@dataclass(frozen=True)
class Side:
    """One draw: a factor, or a parameter's dense noise.

    Attributes:
        leaf: the parameter.
        side: `LEFT`, `RIGHT` or `DENSE`.
        distribution: `"rademacher"` or `"normal"`.
        seeded: whether it stays a key.
    """

    leaf: LeafPlan
    side: int
    distribution: str
    seeded: bool

    @property
    def axes(self) -> tuple[int, ...]:
        """Of the parameter."""
        leaf = self.leaf
        return {LEFT: leaf.left_axes, RIGHT: leaf.right_axes, DENSE: tuple(range(len(leaf.shape)))}[self.side]

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the axes of the stack."""
        return tuple(self.leaf.shape[a] for a in self._stack_axes)

    @property
    def own(self) -> tuple[int, ...]:
        """Shape of one matrix's numbers: its other axes, of a factor the rank, of complex ones both parts."""
        rest = tuple(self.leaf.shape[a] for a in self.axes if a not in self._stack_axes)
        return (*rest, *([] if self.side == DENSE else [self.leaf.rank]), *([2] if self.is_complex else []))

    @property
    def is_complex(self) -> bool:
        """Whether a number is two: of a complex parameter's factors the left one is complex, the right one real."""
        return self.leaf.is_complex and self.side != RIGHT

    @property
    def dtype(self) -> Any:
        """Of its numbers."""
        return jnp.dtype(self.leaf.dtype) if self.is_complex else self._drawn_dtype

    @property
    def _drawn_dtype(self) -> Any:
        return jnp.finfo(self.leaf.dtype).dtype if self.leaf.is_complex else jnp.dtype(self.leaf.dtype)

    @property
    def _stack_axes(self) -> tuple[int, ...]:
        return () if self.side == DENSE else self.leaf.stack_axes

    @property
    def stream(self) -> Stream:
        """Where its words come from."""
        words = 2 if self.seeded else words_for(math.prod(self.own), self.distribution)
        stack = math.prod(self.stack) if self._stack_axes else None
        return Stream(path_hash(self.leaf.path), self.side, words, self.seeded, stack)

    def draw(self, words: jax.Array) -> Any:
        """Numbers `[U, *sizes of the axes, r]` of words `[U, W]`; or keys `[U, *stack, 2]`."""
        words = words.reshape(len(words), *self.stack, self.stream.words)
        if self.seeded:
            return self._seeded(words)
        drawn = self._joined(unpack(words, self.own, self.distribution, self._drawn_dtype), -1)
        return jnp.moveaxis(drawn, range(1, 1 + len(self.stack)), [1 + i for i in self._places])

    def draw_for_update(self, words: jax.Array) -> Any:
        """The same for the update's product, matrices of a stack first: of a left factor the units are last.

        Only the words are transposed, of which there are 32 or 2 times fewer than numbers.

        Returns:
            `[*stack, *own, U]` of a left factor, `[*stack, U, *own]` of a right one, `[U, *shape]` of dense noise; or
            keys `[*stack, U, 2]`.
        """
        matrices = math.prod(self.stack)
        words = words.reshape(len(words), matrices, self.stream.words)
        last = self.side == LEFT and not self.seeded
        words = jnp.transpose(words, (1, 2, 0) if last else (1, 0, 2))
        if self.seeded:
            return self._seeded(words.reshape(*self.stack, *words.shape[1:]))
        words = lax.optimization_barrier(words) if last else words

        def numbers(words: jax.Array) -> jax.Array:
            drawn = unpack(words, self.own, self.distribution, self._drawn_dtype, members_last=last)
            return self._joined(drawn, -2 if last else -1)

        drawn = jax.vmap(numbers)(words) if self._stack_axes else numbers(words[0])
        return drawn.reshape(*self.stack, *drawn.shape[1:]) if self._stack_axes else drawn

    def _joined(self, drawn: jax.Array, axis: int) -> jax.Array:
        """Complex numbers of their parts, which lie along an axis."""
        return lax.complex(*(drawn.take(i, axis) for i in (0, 1))) if self.is_complex else drawn

    def _seeded(self, keys: jax.Array) -> Seeded:
        *sizes, rank = self.own
        options = self.distribution, self.leaf.dtype, self.leaf.path, tuple(sizes)
        return Seeded(keys, math.prod(sizes), rank, *options)

    def alike(self) -> Side:
        """The same for all sides that are drawn alike: nothing says whose it is."""
        return replace(self, leaf=replace(self.leaf, path="", sigma_scale=1.0, matrix=None))

    @property
    def _places(self) -> Sequence[int]:
        """Where the axes of the stack are among the side's."""
        return [self.axes.index(a) for a in self._stack_axes]


def sides(leaf: LeafPlan, distribution: str, seeded: bool) -> list[Side]:
    """The draws that a parameter's noise consists of."""
    numbers = {"low_rank": (LEFT, RIGHT), "dense": (DENSE,)}.get(leaf.kind, ())
    return [Side(leaf, side, distribution, seeded and leaf.kind == "low_rank") for side in numbers]
