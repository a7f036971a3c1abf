"""The whole TPU compiler, on a machine without one: the kernels fit their chip and need no memory beside operands."""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from bench.tools.kernel_shapes import PAPER, SMALL
from eggroll.kernels import Seeded
from eggroll.kernels.tpu_lowrank_dot import lowrank_dot_tpu
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from tests.kernels.seeds import on_tpu

KINDS = {"v5e:2x2": "TPU v5 lite", "v6e:2x2": "TPU v6 lite"}
NOISE = ("rademacher", "normal")
DTYPES = ("float32", "bfloat16")
# Every noise and dtype at the paper's shape, on the chips in turn; of each other shape both noises and both dtypes.
CASES = [
    (kind, shape, distribution, dtype)
    for i, kind in enumerate(KINDS)
    for s, shape in enumerate((*SMALL[1:], PAPER))
    for j, distribution in enumerate(NOISE)
    for k, dtype in enumerate(DTYPES)
    if (i + j + k) % 2 == 0 and (shape is PAPER or (i + s // 2 + s + k) % 2 == 0)
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.measured,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the compiler is in jax[tpu]"),
]


@contextmanager
def device_of(kind):
    """One device of a topology that is not there."""
    if jax.__version_info__ < (0, 12):
        pytest.skip("topologies without the hardware need JAX 0.12")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it looks for a cloud's metadata server
    from jax.experimental import topologies

    with on_tpu(KINDS[kind]):
        yield topologies.get_topology_desc(kind, platform="tpu").devices[0]


@pytest.mark.parametrize(("kind", "shape", "distribution", "dtype"), CASES, ids=lambda v: getattr(v, "name", v))
def test_both_kernels_compile(kind, shape, distribution, dtype):
    with device_of(kind) as chip:
        compile_both(chip, shape, distribution, dtype)


def compile_both(chip, shape, distribution, dtype):
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
