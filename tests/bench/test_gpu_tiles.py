"""`bench.gpu_tiles`: what is timed is what the kernels choose, and neighbours of it."""

from __future__ import annotations

import json

import pytest

from bench import gpu_tiles
from bench.tools.kernel_shapes import PAPER
from eggroll.kernels.tiling import GpuTiles

SHARED_MEMORY = 227 << 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_chosen_is_among_them_and_all_fit(dtype):
    tiles = gpu_tiles.dot_tiles(PAPER, dtype)
    assert tiles["chosen"] == GpuTiles.for_dot(1024, 8192, dtype, 1)
    assert {t.cluster for t in tiles.values()} == {1, 2}
    width = 4 if dtype == "float32" else 2
    for found in tiles.values():
        operands = found.steps * found.depth * (found.rows + found.columns) * width
        turned = 3 * found.depth * found.columns * 4 if dtype == "float32" else 0
        assert operands + turned + (16 << 10) <= SHARED_MEMORY
    assert {t.stored for t in gpu_tiles.update_tiles(PAPER).values()} == {True, False}


def test_without_a_hopper_gpu_it_says_why(tmp_path):
    gpu_tiles.main(["--quick", "--out", str(tmp_path / "tiles.json")])
    kept = json.loads((tmp_path / "tiles.json").read_text())
    assert not kept["rows"]
    assert any("needs a Hopper GPU" in note for note in kept["notes"])
