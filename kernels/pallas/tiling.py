"""Sizes of the tiles that a kernel works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Ref: TypeAlias = Any  # to memory, as a kernel's body gets it: Pallas has no type for what all of its backends allow
Index: TypeAlias = int | jax.Array


@dataclass(frozen=True)
class Tiles:
    """A tile of a product `[rows, depth]·[depth, columns]`.

    Attributes:
        rows: of the left operand and of the result.
        columns: of the right operand and of the result.
        depth: contracted at once.
    """

    rows: int
    columns: int
    depth: int

    def fitted(self, rows: int, columns: int, depth: int, *, least: Tiles) -> Tiles:
        """No larger than the arrays need, in multiples of `least`."""
        return Tiles(
            min(self.rows, round_up(rows, least.rows)),
            min(self.columns, round_up(columns, least.columns)),
            min(self.depth, round_up(depth, least.depth)),
        )


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is no less than `n`."""
    return -(-n // multiple) * multiple


FEW_TILES = 32  # of an update; up to it a kernel of its own for the random words would save less than it takes


@dataclass(frozen=True)
class GpuTiles:
    """Tiles of a block of warpgroups, and how many of them are on their way at once.

    Attributes:
        columns: of the right operand and of the result.
        depth: contracted at once.
        steps: tiles of either operand that shared memory holds.
        warpgroups: that multiply.
        each: blocks of 64 rows of the result that a warpgroup has.
        together: tiles of rows that are worked on before the next columns.
        cluster: blocks, one below the other, that share each tile of the right operand: 1 or 2.
        within: whether the product makes its thin product itself, anew for each tile, while the tensor cores work: one
            kernel less, and one reading of x. For bfloat16, with `depth` 64 and `each` 1.
        stored: whether the random words of an update lie in memory, instead of being made for each tile again.
    """

    columns: int = 256
    depth: int = 64
    steps: int = 4
    warpgroups: int = 2
    each: int = 1
    together: int = 16
    cluster: int = 1
    within: bool = False
    stored: bool = True

    def __post_init__(self) -> None:
        if self.within and (self.depth, self.each) != (64, 1):
            raise ValueError(f"got within with depth {self.depth} and each {self.each}; it needs depth 64 and each 1")

    @property
    def rows(self) -> int:
        """Of the left operand and of the result."""
        return 64 * self.each * self.warpgroups

    @classmethod
    def for_dot(cls, rows: int, columns: int, dtype: DTypeLike, rank: int) -> GpuTiles:
        """For H100 and H200, whose shared memory takes 227 KiB.

        bfloat16: 4 · 48 KiB of operands, 16 or 32 of results. float32: 3 · 48 KiB of operands, and 3 · 16 of weights
        that are turned round on the way, which costs a tile of few columns and many rows the least.
        """
        if jnp.dtype(dtype) == jnp.float32:
            columns = 128 if columns > 64 else 64
            if rows <= 64:
                return cls(columns=columns, depth=32, steps=6, warpgroups=1)
            fits = not 2 < rank <= 4  # words of four ranks take 16 KiB; of more there are none
            return cls(columns=columns, depth=32, steps=3, each=2 if rows > 128 and fits else 1)
        if rows <= 64:
            return cls(columns=128 if columns > 64 else 64, steps=6, warpgroups=1)
        return cls(columns=256 if columns > 128 else 128 if columns > 64 else 64)

    @classmethod
    def for_update(cls, rows: int, columns: int, parts: int) -> GpuTiles:
        """For the sum of perturbations `[rows, columns]`: operands are made in work for `rows + columns` of a tile.

        `parts` of bfloat16 make a number of the right operand: shared memory takes three only of a narrow tile.
        """
        return cls(
            columns=256 if columns > 128 and parts == 1 else 128,
            warpgroups=2 if rows > 64 else 1,
            stored=rows * columns >= FEW_TILES * 128 * 256,
        )

    def stage_columns(self, dtype: DTypeLike) -> int:
        """Columns of the result that are written at once: 64 bytes."""
        return 64 // jnp.dtype(dtype).itemsize
