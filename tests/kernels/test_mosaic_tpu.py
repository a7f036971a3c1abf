"""The TPU kernels in the interpreter, which fills memory with NaN and looks for races, against float64."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from bench.tools.kernel_shapes import PAPER, SMALL, Shape
from eggroll.kernels import Seeded
from eggroll.kernels.tiling import Tiles
from eggroll.kernels.tpu_lowrank_dot import lowrank_dot_tpu
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from eggroll.ops.operations import lowrank_dot_reference
from eggroll.ops.truth import dot_tolerance, update_tolerance, update_truth
from tests.kernels.seeds import dot_operands, dot_truth, on_tpu, seeded
from tests.quick import quickest

INTERPRETER = pltpu.InterpretParams(detect_races=True)
SHAPES = st.builds(
    Shape, st.integers(1, 5), st.integers(1, 2), st.sampled_from([1, 2, 7, 130]), st.integers(1, 300),
    st.integers(1, 300), st.integers(1, 4),
)  # fmt: skip
DISTRIBUTIONS = st.sampled_from(["rademacher", "normal"])


def check_dot(shape, distribution, dtype, **options) -> None:
    """Against the truth, up to the rounding of sums and of the result."""
    x, w, left, right, scale = dot_operands(shape, distribution, dtype)
    y = lowrank_dot_tpu(x, w, left, right, scale=scale, interpret=INTERPRETER, **options)
    assert y.dtype == dtype and y.shape == (shape.members, shape.rows, shape.columns)
    truth, magnitude = dot_truth(x, w, left, right, scale)
    assert np.all(np.abs(np.asarray(y, np.float64) - truth) <= dot_tolerance(shape, dtype) * magnitude)


@pytest.mark.parametrize("shape", quickest([SMALL[i] for i in (0, 1, 4, 6)], SMALL[1]), ids=lambda shape: shape.name)
def test_lowrank_dot(shape):
    check_dot(shape, "rademacher", jnp.float32)


@pytest.mark.slow
@settings(max_examples=3)
@given(shape=SHAPES, distribution=DISTRIBUTIONS, dtype=st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_lowrank_dot_of_any_shape(shape, distribution, dtype):
    check_dot(shape, distribution, dtype)


def test_output_of_another_dtype():
    x, w, left, right, scale = dot_operands(SMALL[1], "rademacher", jnp.bfloat16)
    options = {"scale": scale, "preferred_element_type": jnp.float32}
    got = lowrank_dot_tpu(x, w, left, right, interpret=INTERPRETER, **options)
    want = lowrank_dot_reference(x, w, left, right, **options)
    assert got.dtype == want.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": jnp.ones((2, 1, 5), jnp.float16), "w": jnp.ones((5, 4), jnp.float16)}, "float16"),
        ({"w": jnp.ones((5, 4), jnp.bfloat16)}, "both"),
        ({"left": seeded(1, 1, 5, 17), "right": seeded(2, 1, 4, 17)}, "rank 17"),
        ({"left": jnp.ones((5, 1)), "right": jnp.ones((4, 1))}, "arrays"),
        ({"precision": "bfloat16_3x"}, "precision"),
        ({"w": jnp.ones((5, 0)), "right": seeded(2, 1, 4, 1)}, "size zero"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernel_cannot_do(change, reason):
    operands = {
        "x": jnp.ones((2, 1, 5)),
        "w": jnp.ones((5, 4)),
        "left": seeded(1, 1, 5, 1),
        "right": seeded(2, 1, 4, 1),
    }
    with pytest.raises(NotImplementedError, match=reason):
        lowrank_dot_tpu(**(operands | change))


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [SMALL[1], PAPER], ids=lambda shape: shape.name)
def test_lowering_for_a_tpu(shape, dtype):
    """The kernels are in the program, and nothing as large as the factors is."""
    specs = [jax.ShapeDtypeStruct(s, t) for s, t in (
        ((shape.members, shape.rows, shape.depth), dtype), ((shape.depth, shape.columns), dtype),
        ((shape.units, 2), "uint32"), ((shape.units, 2), "uint32"), ((shape.members,), "float32"),
    )]  # fmt: skip

    def both(x, w, left_keys, right_keys, scale):
        left = Seeded(left_keys, shape.depth, shape.rank, "rademacher", dtype)
        right = Seeded(right_keys, shape.columns, shape.rank, "rademacher", dtype)
        return lowrank_dot_tpu(x, w, left, right, scale=scale), rank_update_tpu(scale[: shape.units], left, right)

    with on_tpu("TPU v5 lite"):
        text = jax.jit(both).trace(*specs).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3
    factors = rf"tensor<{shape.units}x(1x)?({shape.depth}|{shape.columns})x"
    assert not re.search(factors, text)


@pytest.mark.slow
@pytest.mark.parametrize(("units", "rows"), quickest([(12, 1), (1, 130)], (1, 130)))
def test_several_tiles_along_every_axis(units, rows):
    shape = Shape(units=units, signs=2, rows=rows, depth=300, columns=200, rank=2)
    check_dot(shape, "rademacher", jnp.float32, tiles=Tiles(rows=16 if rows == 1 else 80, columns=128, depth=128))


@settings(max_examples=1)
@given(
    units=st.integers(1, 40), left=st.integers(1, 300), right=st.integers(1, 300), rank=st.integers(1, 16),
    distribution=DISTRIBUTIONS,
)  # fmt: skip
def test_rank_update(units, left, right, rank, distribution):
    check_update(units, left, right, rank, distribution, jnp.float32, True)


@pytest.mark.slow
def test_rank_update_in_several_tiles():
    tiles = Tiles(rows=128, columns=128, depth=16)
    check_update(40, 200, 140, 2, "rademacher", jnp.float32, True, tiles=tiles)
    check_update(40, 200, 140, 2, "rademacher", jnp.bfloat16, False, tiles=tiles)


def check_update(units, left_size, right_size, rank, distribution, dtype, start, **options) -> None:
    """Against the truth; of half precision noise the products with weights are rounded."""
    rng = np.random.default_rng(units)
    weights = jnp.asarray(rng.normal(size=units), jnp.float32)
    left = seeded(1, units, left_size, rank, distribution, dtype)
    right = seeded(2, units, right_size, rank, distribution, dtype)
    accumulator = jnp.asarray(rng.normal(size=(left_size, right_size)), jnp.float32) if start else None
    got = rank_update_tpu(weights, left, right, accumulator=accumulator, interpret=INTERPRETER, **options)
    truth, magnitude = update_truth(weights, left, right, accumulator)
    assert got.dtype == jnp.float32 and got.shape == (left_size, right_size)
    bound = update_tolerance(units, rank, dtype) * magnitude
    assert np.all(np.abs(np.asarray(got, np.float64) - truth) <= bound)
