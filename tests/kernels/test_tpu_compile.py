"""The whole TPU compiler, on a machine without one: the kernels fit their chip and need no memory beside operands."""

from __future__ import annotations

import importlib.util
import os

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from bench.tools.kernel_shapes import PAPER, SMALL
from eggroll.kernels import Seeded
from eggroll.kernels.tpu_lowrank_dot import lowrank_dot_tpu
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from tests.kernels.seeds import on_tpu

KINDS = {"v5e:2x2": "TPU v5 lite", "v6e:2x2": "TPU v6 lite"}
SHAPES = [*SMALL[1:], PAPER]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.measured,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the compiler is in jax[tpu]"),
]


@pytest.fixture(scope="module", params=KINDS)
def chip(request):
    """One device of a topology that is not there."""
    if jax.__version_info__ < (0, 12):
        pytest.skip("topologies without the hardware need JAX 0.12")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it looks for a cloud's metadata server
    from jax.experimental import topologies

    with on_tpu(KINDS[request.param]):
        yield topologies.get_topology_desc(request.param, platform="tpu").devices[0]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_kernels_compile(chip, shape, distribution, dtype):
    def spec(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(chip))

    def factors(left_keys, right_keys):
        static = shape.rank, distribution, dtype
        return Seeded(left_keys, shape.depth, *static), Seeded(right_keys, shape.columns, *static)

    def dot(x, w, left_keys, right_keys, scale):
        x = x.reshape(shape.members, shape.rows, shape.depth)
        return lowrank_dot_tpu(x, w, *factors(left_keys, right_keys), scale=scale)

    def update(weights, left_keys, right_keys):
        return rank_update_tpu(weights, *factors(left_keys, right_keys))

    keys = [spec((shape.units, 2), "uint32")] * 2
    x = spec((shape.members * shape.rows, shape.depth), dtype)
    programs = {
        dot: (x, spec((shape.depth, shape.columns), dtype), *keys, spec((shape.members,), "float32")),
        update: (spec((shape.units,), "float32"), *keys),
    }
    for program, specs in programs.items():
        compiled = jax.jit(program).trace(*specs).lower(lowering_platforms=("tpu",)).compile()
        if shape is PAPER:  # no factors, 17 or 34 MB; small shapes cost a change of layout
            on_chip = x.size * x.dtype.itemsize if "copy-start(%x" in compiled.as_text() else 0  # v6e prefetches x
            assert compiled.memory_analysis().temp_size_in_bytes < (1 << 20) + on_chip
