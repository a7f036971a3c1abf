"""Sizes of the tiles that a kernel works on."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike


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


@dataclass(frozen=True)
class GpuTiles:
    """Tiles of a block of warpgroups, and how many of them are on their way at once.

    Attributes:
        columns: of the right operand and of the result.
        depth: contracted at once.
        steps: tiles of either operand that shared memory holds.
        warpgroups: that multiply, 64 rows of the result each.
        together: tiles of rows that are worked on before the next columns.
    """

    columns: int = 256
    depth: int = 64
    steps: int = 4
    warpgroups: int = 2
    together: int = 16

    @property
    def rows(self) -> int:
        """Of the left operand and of the result."""
        return 64 * self.warpgroups

    @classmethod
    def for_dot(cls, rows: int, columns: int) -> GpuTiles:
        """For H100 and H200, whose shared memory takes 228 KiB: 4 · 48 of operands and 32 of results."""
        if rows <= 64:
            return cls(columns=128 if columns > 64 else 64, steps=6, warpgroups=1)
        return cls(columns=256 if columns > 128 else 128 if columns > 64 else 64)

    @classmethod
    def for_update(cls, rows: int, columns: int) -> GpuTiles:
        """For the sum of perturbations `[rows, columns]`: operands are made in work for `rows + columns` of a tile."""
        return cls(columns=256 if columns > 128 else 128, warpgroups=2 if rows > 64 else 1)

    def stage_columns(self, dtype: DTypeLike) -> int:
        """Columns of the result that are written at once: 64 bytes."""
        return 64 // jnp.dtype(dtype).itemsize
