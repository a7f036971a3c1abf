"""The Hopper kernels: in the interpreter, which looks for races, against float64; and lowered for a GPU."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu

from bench.tools.kernel_shapes import PAPER, SMALL, Shape
from eggroll.kernels import Seeded, lowrank_dot, rank_update
from eggroll.kernels.gpu_lowrank_dot import lowrank_dot_gpu
from eggroll.kernels.gpu_rank_update import rank_update_gpu
from eggroll.kernels.tiling import GpuTiles
from eggroll.ops import registry
from tests.kernels.seeds import dot_operands, dot_truth, on_gpu, seeded
from tests.quick import quickest

HAS_INTERPRETER = hasattr(plgpu, "InterpretGPUParams")
INTERPRETER = plgpu.InterpretGPUParams(detect_races=True) if HAS_INTERPRETER else None
interpreted = pytest.mark.skipif(not HAS_INTERPRETER, reason="JAX has an interpreter for GPU kernels after 0.10")
SHAPES = st.builds(
    Shape, st.integers(1, 5), st.integers(1, 2), st.sampled_from([1, 2, 7, 130]), st.integers(1, 300),
    st.integers(1, 300), st.integers(1, 16),
)  # fmt: skip
DTYPES = [jnp.bfloat16, jnp.float32]
MANY = Shape(units=67, signs=2, rows=2, depth=200, columns=130, rank=2)  # more steps than these tiles hold at once
FEWER = replace(MANY, units=33)
SMALL_TILES = GpuTiles(columns=64, steps=2, together=2)


def check_dot(shape, distribution, operands=jnp.bfloat16, **options) -> None:
    """Against the truth, up to the rounding of sums and of the result; the interpreter rounds nothing to tf32."""
    x, w, left, right, scale = dot_operands(shape, distribution, operands)
    y = lowrank_dot_gpu(x, w, left, right, scale=scale, interpret=INTERPRETER, **options)
    dtype = options.get("preferred_element_type", operands)
    assert y.dtype == dtype and y.shape == (shape.members, shape.rows, shape.columns)
    truth, magnitude = dot_truth(x, w, left, right, scale)
    bound = ((shape.depth + shape.rank + 4) * np.finfo(np.float32).eps + float(jnp.finfo(dtype).eps)) * magnitude
    assert np.all(np.abs(np.asarray(y, np.float64) - truth) <= bound)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
@pytest.mark.parametrize("shape", quickest([SMALL[i] for i in (1, 3)], SMALL[3]), ids=lambda shape: shape.name)
def test_lowrank_dot(shape, dtype):
    check_dot(shape, "rademacher", dtype)


@interpreted
@pytest.mark.slow
@settings(max_examples=2)
@given(shape=SHAPES, distribution=st.sampled_from(["rademacher", "normal"]), dtype=st.sampled_from(DTYPES))
def test_lowrank_dot_of_any_shape(shape, distribution, dtype):
    check_dot(shape, distribution, dtype)


@interpreted
@pytest.mark.parametrize("distribution", quickest(["rademacher", "normal"], "normal"))
def test_many_tiles_and_float32_results(distribution):
    """A block takes several tiles, along every axis, and fetches more steps than shared memory holds."""
    check_dot(FEWER, distribution, tiles=SMALL_TILES, preferred_element_type=jnp.float32)


@interpreted
@pytest.mark.parametrize("each", quickest([1, 2], 2))
def test_float32_weights_are_turned_round(each):
    """Three tiles of shared memory serve seven steps of several tiles, in turn."""
    check_dot(MANY, "rademacher", jnp.float32, tiles=replace(SMALL_TILES, columns=128, depth=32, each=each))


@interpreted
@pytest.mark.parametrize(
    ("distribution", "cluster"), quickest([("rademacher", 1), ("rademacher", 2), ("normal", 1)], ("rademacher", 2))
)
def test_the_thin_product_within_the_product(distribution, cluster):
    tiles = replace(SMALL_TILES, within=True, cluster=cluster)
    check_dot(FEWER, distribution, tiles=tiles, preferred_element_type=jnp.float32)


def test_float32_has_its_thin_product_apart():
    with pytest.raises(ValueError, match="got within with depth 32"):
        replace(GpuTiles.for_dot(200, 200, jnp.float32, 1), within=True)


@interpreted
@pytest.mark.parametrize("dtype", quickest(DTYPES, jnp.float32), ids=lambda dtype: jnp.dtype(dtype).name)
def test_two_blocks_share_tiles_of_the_weight(dtype):
    """Five tiles of rows, so that one block of the last two has nothing to do."""
    tiles = replace(SMALL_TILES, columns=128, depth=32 if dtype == jnp.float32 else 64, cluster=2, warpgroups=1)
    check_dot(MANY, "rademacher", dtype, tiles=tiles)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": jnp.ones((2, 1, 5)), "w": jnp.ones((5, 4)), "precision": jax.lax.Precision.HIGHEST}, "float32 at high"),
        ({"w": jnp.ones((5, 4))}, "both"),
        ({"left": seeded(1, 1, 5, 17), "right": seeded(2, 1, 4, 17)}, "rank 17"),
        ({"left": jnp.ones((5, 1)), "right": jnp.ones((4, 1))}, "arrays"),
        ({"precision": "BF16_BF16_F32"}, "precision"),
        ({"preferred_element_type": "float16"}, "preferred_element_type"),
        ({"w": jnp.ones((5, 0), jnp.bfloat16), "right": seeded(2, 1, 4, 1)}, "size zero"),
        ({"left": seeded(1, 1, 5, 1, "normal", "float16")}, "normal noise of float16"),
        ({}, "needs a Hopper GPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernel_cannot_do(change, reason):
    operands = {
        "x": jnp.ones((2, 1, 5), jnp.bfloat16),
        "w": jnp.ones((5, 4), jnp.bfloat16),
        "left": seeded(1, 1, 5, 1),
        "right": seeded(2, 1, 4, 1),
    }
    with pytest.raises(NotImplementedError, match=reason):
        lowrank_dot_gpu(**(operands | change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": jnp.ones(0)}, "no members"),
        ({"left": seeded(1, 2, 5, 1, "normal", "float16")}, "normal noise of float16"),
        ({"left": jnp.ones((2, 5, 1)), "right": jnp.ones((2, 4, 1))}, "arrays"),
        ({}, "needs a Hopper GPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_update_cannot_do(change, reason):
    operands = {"weights": jnp.ones(2), "left": seeded(1, 2, 5, 1), "right": seeded(2, 2, 4, 1)}
    with pytest.raises(NotImplementedError, match=reason):
        rank_update_gpu(**(operands | change))


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA B200", "NVIDIA L40S"])
def test_other_gpus_are_left_alone(kind):
    with on_gpu(kind), pytest.raises(NotImplementedError, match=f"{kind}: .*Hopper"):
        rank_update_gpu(jnp.ones(2), seeded(1, 2, 5, 1), seeded(2, 2, 4, 1))


def test_elsewhere_xla_computes(monkeypatch):
    """With a GPU by default, but not this kind."""
    x, w, left, right, scale = dot_operands(SMALL[1], "rademacher", jnp.bfloat16)
    pairs = x.reshape(3, 2, *x.shape[1:]), scale.reshape(3, 2)
    member = jax.vmap(lambda x, left, right, scale: lowrank_dot(x, w, left, right, scale=scale), (0, None, None, 0))
    want = jax.vmap(member)(pairs[0], left, right, pairs[1]), rank_update(scale[:3], left, right)
    monkeypatch.setattr(registry, "current_platform", lambda: "gpu")
    got = jax.vmap(member)(pairs[0], left, right, pairs[1]), rank_update(scale[:3], left, right)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], atol=2.0**-8 * 3 * 0.3)  # "xla_parts" rounds each of three terms


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("shape", "dtype"), [(SMALL[1], "bfloat16"), (PAPER, "float32")], ids=lambda v: getattr(v, "name", v)
)
def test_lowering_for_a_gpu(shape, dtype):
    """The kernels are in the program, and no tensor is as large as the factors are."""
    specs = [jax.ShapeDtypeStruct(s, t) for s, t in (
        ((shape.members, shape.rows, shape.depth), dtype), ((shape.depth, shape.columns), dtype),
        ((shape.units, 2), "uint32"), ((shape.units, 2), "uint32"), ((shape.members,), "float32"),
    )]  # fmt: skip

    def both(x, w, left_keys, right_keys, scale):
        left = Seeded(left_keys, shape.depth, shape.rank, "rademacher", dtype)
        right = Seeded(right_keys, shape.columns, shape.rank, "rademacher", dtype)
        return lowrank_dot_gpu(x, w, left, right, scale=scale), rank_update_gpu(scale[: shape.units], left, right)

    with on_gpu():
        text = jax.jit(both).trace(*specs).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 3
    assert f"tensor<{shape.units}x{shape.depth}x" not in text


def check_update(units, left_size, right_size, rank, distribution, dtype, start, **options) -> None:
    """Against the truth; of half precision noise the products with weights are rounded."""
    rng = np.random.default_rng(units)
    weights = jnp.asarray(rng.normal(size=units), jnp.float32)
    left = seeded(1, units, left_size, rank, distribution, dtype)
    right = seeded(2, units, right_size, rank, distribution, dtype)
    accumulator = jnp.asarray(rng.normal(size=(left_size, right_size)), jnp.float32) if start else None
    got = rank_update_gpu(weights, left, right, accumulator=accumulator, interpret=INTERPRETER, **options)
    a, b, w = (np.asarray(v, np.float64) for v in (left.array(), right.array(), weights))
    truth = np.einsum("u,uir,ujr->ij", w, a, b) + (np.asarray(accumulator, np.float64) if start else 0)
    magnitude = np.einsum("u,uir,ujr->ij", np.abs(w), np.abs(a), np.abs(b)) + (4 if start else 0)
    eps = (units * rank + 4) * np.finfo(np.float32).eps + (float(jnp.finfo(dtype).eps) if dtype == "bfloat16" else 0)
    assert got.dtype == jnp.float32 and got.shape == (left_size, right_size)
    assert np.all(np.abs(np.asarray(got, np.float64) - truth) <= eps * magnitude)


@interpreted
@settings(max_examples=1)
@given(units=st.integers(1, 80), left=st.integers(1, 200), right=st.integers(1, 300), rank=st.integers(1, 16))
def test_rank_update(units, left, right, rank):
    check_update(units, left, right, rank, "rademacher", "float32", True)


@interpreted
@pytest.mark.parametrize(
    ("distribution", "dtype", "start"),
    quickest(
        [("rademacher", "float32", True), ("normal", "bfloat16", False), ("normal", "float32", False)],
        ("rademacher", "float32", True), ("normal", "bfloat16", False),
    ),
)  # fmt: skip
def test_rank_update_in_several_tiles(distribution, dtype, start):
    check_update(130, 140, 150, 2, distribution, dtype, start, tiles=GpuTiles(columns=128))


@interpreted
@pytest.mark.parametrize("stored", quickest([True, False], False))
def test_words_from_memory_or_made_for_each_tile(stored):
    check_update(70, 140, 300, 2, "rademacher", "bfloat16", False, tiles=GpuTiles(stored=stored))


@interpreted
def test_float32_sums_are_exact():
    """Weights of 24 bits whose products cancel: what two parts of bfloat16 would lose remains."""
    left, right = seeded(1, 1, 64, 1), seeded(2, 1, 64, 1)
    pair = [Seeded(jnp.concatenate([f.key, f.key]), f.size, f.rank, f.distribution) for f in (left, right)]
    weights = jnp.asarray([1 + 2.0**-10 + 2.0**-23, -1 - 2.0**-10], jnp.float32)
    got = rank_update_gpu(weights, *pair, interpret=INTERPRETER)
    want = 2.0**-23 * left.array()[0] * right.array()[0].T
    np.testing.assert_array_equal(got, want)
