"""How large tiles are on each TPU: enough work for each byte that is read, within the chip's vector memory."""

from __future__ import annotations

from dataclasses import dataclass

from jax.experimental.pallas import tpu as pltpu

from .tiling import Tiles

MARGIN = 1.25  # of work beyond what keeps matrix units and memory equally busy
SIDES = ((256, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024))  # of a tile of the result
DEPTHS = (1024, 512, 256, 128)


@dataclass(frozen=True)
class Chip:
    """What tiles depend on.

    Attributes:
        memory: bytes of vector memory (VMEM).
        intensity: operations of the matrix units on bfloat16 in the time that memory takes for a byte.
    """

    memory: int
    intensity: float

    @property
    def limit(self) -> int:
        """Bytes that a kernel may take; the compiler needs the rest."""
        return self.memory // 2

    def tiles(self, itemsize: int) -> Tiles:
        """For a product of operands of `itemsize` bytes: the smallest with work enough, else the largest that fit."""
        fitting = [
            Tiles(rows, columns, depth)
            for rows, columns in SIDES
            for depth in DEPTHS
            if _bytes(rows, columns, depth, itemsize) <= self.limit
        ]
        largest = max(fitting, key=lambda t: (t.rows * t.columns, t.depth))
        enough = [t for t in fitting if _intensity(t, itemsize) >= MARGIN * self.intensity]
        return min(enough, key=lambda t: (t.rows * t.columns, -t.depth), default=largest)


def chip() -> Chip:
    """The current TPU, or the one that is lowered for; a v5e where there is none, as in the interpreter."""
    try:
        info = pltpu.get_tpu_info()
    except (ValueError, RuntimeError):  # what it raises on other machines
        return Chip(128 << 20, 240.0)
    return Chip(info.vmem_capacity_bytes, info.bf16_ops_per_second / info.mem_bw_bytes_per_second)


def _bytes(rows: int, columns: int, depth: int, itemsize: int) -> int:
    """Operands and result twice, since they come and go while others are worked on, and a float32 sum."""
    return 2 * itemsize * (rows * depth + depth * columns + rows * columns) + 4 * rows * columns


def _intensity(tiles: Tiles, itemsize: int) -> float:
    """Operations for each byte of operands."""
    return 2 * tiles.rows * tiles.columns / (itemsize * (tiles.rows + tiles.columns))
