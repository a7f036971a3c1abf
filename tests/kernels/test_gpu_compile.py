"""The whole compilers for an H200, on a machine without one: the kernels fit it and need little memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bench.gpu_compile import compiled_with_reports
from bench.tools.gpu_target import compiled, has_compiler
from bench.tools.kernel_shapes import PAPER, SMALL, Shape
from eggroll.kernels import Seeded, rank_update
from eggroll.kernels.gpu_lowrank_dot import lowrank_dot_gpu
from eggroll.kernels.gpu_rank_update import rank_update_gpu
from eggroll.ops.cases import population_dot

# Mosaic works out layouts in Python: a minute for rank 16 or normal noise.
CASES = [
    *[(SMALL[1], "rademacher", "float32"), *((SMALL[i], "rademacher", "bfloat16") for i in (3, 4))],
    *[(PAPER, distribution, dtype) for distribution in ("rademacher", "normal") for dtype in ("float32", "bfloat16")],
]
SHARED_MEMORY = 227 << 10  # of a block
pytestmark = [
    pytest.mark.slow,
    pytest.mark.measured,
    pytest.mark.skipif(not has_compiler(), reason="the compiler is in jax-cuda13-plugin and jax-cuda13-pjrt"),
]
Spec = jax.ShapeDtypeStruct


def factors(shape, distribution, dtype, left_keys, right_keys):
    static = shape.rank, distribution, dtype
    return Seeded(left_keys, shape.depth, *static), Seeded(right_keys, shape.columns, *static)


@pytest.mark.parametrize(("shape", "distribution", "dtype"), CASES, ids=lambda v: v.name if isinstance(v, Shape) else v)
def test_both_kernels_compile(shape, distribution, dtype):
    def both(x, w, left_keys, right_keys, scale):
        left, right = factors(shape, distribution, dtype, left_keys, right_keys)
        y = lowrank_dot_gpu(x, w, left, right, scale=scale)
        return y, rank_update_gpu(scale[: shape.units], left, right)

    keys = Spec((shape.units, 2), jnp.uint32)
    x, w = (Spec(s, dtype) for s in ((shape.members, shape.rows, shape.depth), (shape.depth, shape.columns)))
    program, reports = compiled_with_reports(both, x, w, keys, keys, Spec((shape.members,), jnp.float32))
    assert len(reports) == 3  # the thin product, the product, the update
    for report in reports:
        assert report.shared_memory is None or report.shared_memory <= SHARED_MEMORY
        assert not report.serialized
        assert report.spilled <= 512
    if shape is PAPER:  # no factors, 17 or 34 MB; keys, scales, parts of the thin product, words of the update
        assert program.memory_analysis().temp_size_in_bytes < 4 << 20


def test_xla_alone_reads_words_and_multiplies_bfloat16():
    """The forward pass of other GPUs keeps no factor in memory; the update is one product on tensor cores."""

    def forward(x, w, left_keys, right_keys, scale):
        left, right = factors(PAPER, "rademacher", "bfloat16", left_keys, right_keys)
        return population_dot(x, w, left, right, scale, implementation="reference")

    def update(weights, left_keys, right_keys):
        left, right = factors(PAPER, "rademacher", "float32", left_keys, right_keys)
        return rank_update(weights, left, right, implementation="xla_parts")

    keys = Spec((PAPER.units, 2), jnp.uint32)
    x, w = (Spec(s, jnp.bfloat16) for s in ((PAPER.members, 1, PAPER.depth), (PAPER.depth, PAPER.columns)))
    program = compiled(forward, x, w, keys, keys, Spec((PAPER.members,), jnp.float32))
    assert program.memory_analysis().temp_size_in_bytes < 1 << 20  # words: 1 MB for both sides would be 16 of numbers
    text = compiled(update, Spec((PAPER.units,), jnp.float32), keys, keys).as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    assert len(products) == 1 and "f32[8192,8192]" in products[0] and "highest" not in products[0]
