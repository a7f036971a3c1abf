"""Sizes of the tiles that a kernel works on."""

from __future__ import annotations

from dataclasses import dataclass


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
