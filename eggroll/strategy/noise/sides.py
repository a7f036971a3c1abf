"""From random words to the noise of one side of one parameter.

A unit's row holds the words of each matrix of a stack one after the other; every matrix has a stream of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.engine.paths import path_hash
from eggroll.ops import Seeded, unpack, words_for
from eggroll.strategy.noise.streams import DENSE, LEFT, RIGHT, Stream
from eggroll.strategy.plan.leaves import LeafPlan


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
        """Shape of one matrix's numbers: its other axes, and of a factor the rank."""
        rest = tuple(self.leaf.shape[a] for a in self.axes if a not in self._stack_axes)
        return rest if self.side == DENSE else (*rest, self.leaf.rank)

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
        drawn = unpack(words, self.own, self.distribution, self.leaf.dtype)
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
            return unpack(words, self.own, self.distribution, self.leaf.dtype, members_last=last)

        drawn = jax.vmap(numbers)(words) if self._stack_axes else numbers(words[0])
        return drawn.reshape(*self.stack, *drawn.shape[1:]) if self._stack_axes else drawn

    def _seeded(self, keys: jax.Array) -> Seeded:
        *sizes, rank = self.own
        options = self.distribution, self.leaf.dtype, self.leaf.path, tuple(sizes)
        return Seeded(keys, math.prod(sizes), rank, *options)

    @property
    def _places(self) -> Sequence[int]:
        """Where the axes of the stack are among the side's."""
        return [self.axes.index(a) for a in self._stack_axes]


def sides(leaf: LeafPlan, distribution: str, seeded: bool) -> list[Side]:
    """The draws that a parameter's noise consists of."""
    numbers = {"low_rank": (LEFT, RIGHT), "dense": (DENSE,)}.get(leaf.kind, ())
    return [Side(leaf, side, distribution, seeded and leaf.kind == "low_rank") for side in numbers]
