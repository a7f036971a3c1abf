"""Tiles fit the chip's memory, and bring work enough where they can."""

from __future__ import annotations

import pytest

from eggroll.kernels.tiling import Tiles
from eggroll.kernels.tpu_chip import MARGIN, chip
from tests.kernels.seeds import on_tpu

CHIPS = ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x")


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kind", CHIPS)
def test_tiles_fit_half_of_the_memory(kind, itemsize):
    with on_tpu(kind):
        tiles, limit = chip().tiles(itemsize), chip().limit
    operands = itemsize * tiles.depth * (tiles.rows + tiles.columns)
    assert 2 * operands + (2 * itemsize + 4) * tiles.rows * tiles.columns <= limit
    assert tiles.rows % 256 == tiles.columns % 256 == tiles.depth % 128 == 0


def test_chips_differ_in_memory_and_in_the_work_that_a_byte_has_to_bring():
    found = {}
    for kind in CHIPS:
        with on_tpu(kind):
            found[kind] = chip()
    assert found["TPU v4"].memory < found["TPU v5"].memory < found["TPU v5 lite"].memory
    assert found["TPU v5 lite"].tiles(2) == Tiles(512, 1024, 1024)
    v5e, v6e = (found[k] for k in ("TPU v5 lite", "TPU v6 lite"))
    assert MARGIN * v5e.intensity <= 2 * 512 * 1024 / (2 * 1536)
    assert v6e.intensity > v5e.intensity and v6e.tiles(2) == Tiles(1024, 1024, 1024)


def test_without_a_tpu_there_are_tiles_for_the_interpreter():
    assert chip().tiles(4).rows >= 256
