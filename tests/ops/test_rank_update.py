"""`rank_update` against NumPy in float64, and what it compiles to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.kernels import rank_update

DTYPES = st.sampled_from([jnp.float32, jnp.bfloat16])
SIZES = st.integers(1, 9)


def draw(seed: int, members: int, m: int, n: int, rank: int, dtype) -> list[jax.Array]:
    """Draw weights, left factors, right factors and an accumulator."""
    rng = np.random.default_rng(seed)
    shapes = [(members,), (members, m, rank), (members, n, rank), (m, n)]
    return [jax.device_put(np.asarray(rng.normal(size=shape), dtype)) for shape in shapes]


def assert_matches(update, weights, left, right, accumulator=0.0) -> None:
    """Assert that the update is the weighted sum, up to the rounding of float32 sums of that many terms."""
    weights, left, right, accumulator = (np.asarray(a, np.float64) for a in (weights, left, right, accumulator))
    truth = accumulator + np.einsum("p,pmr,pnr->mn", weights, left, right)
    magnitude = np.abs(accumulator) + np.einsum("p,pmr,pnr->mn", *map(np.abs, (weights, left, right)))
    terms = left.shape[0] * left.shape[2] + 4
    bound = terms * np.finfo(np.float32).eps * magnitude
    assert np.all(np.abs(np.asarray(update, np.float64) - truth) <= bound)


@given(
    members=st.integers(1, 12), m=SIZES, n=SIZES, rank=st.integers(1, 6), seed=st.integers(0, 99),
    dtype=DTYPES, accumulate=st.booleans(),
)  # fmt: skip
def test_equals_the_sum_over_members(members, m, n, rank, seed, dtype, accumulate):
    weights, left, right, accumulator = draw(seed, members, m, n, rank, dtype)
    added = accumulator if accumulate else None
    update = jax.jit(rank_update)(weights, left, right, accumulator=added)
    assert update.shape == (m, n) and update.dtype == jnp.float32
    assert_matches(update, weights, left, right, accumulator if accumulate else 0.0)


def test_dtypes_may_differ():
    """Rademacher factors travel in bfloat16, the weights and the accumulator in float32."""
    weights, left, right, accumulator = draw(3, 6, 4, 5, 2, jnp.float32)
    left, right = jnp.sign(left).astype(jnp.bfloat16), jnp.sign(right).astype(jnp.float16)
    update = rank_update(weights, left, right, accumulator=accumulator)
    assert update.dtype == jnp.float32
    assert_matches(update, weights, left, right, accumulator)


def test_any_float64_input_gives_float64():
    with jax.enable_x64(True):
        weights, left, right, accumulator = draw(0, 6, 4, 5, 2, jnp.float64)
        exact = np.einsum("p,pmr,pnr->mn", weights, left, right)
        np.testing.assert_allclose(rank_update(weights, left, right), exact, rtol=1e-12, atol=1e-14)
        single = [a.astype(jnp.float32) for a in (weights, left, right)]
        assert rank_update(*single).dtype == jnp.float32
        assert rank_update(*single, accumulator=accumulator).dtype == jnp.float64
        assert rank_update(weights, *single[1:]).dtype == jnp.float64


def test_chunks_accumulate_to_the_whole():
    weights, left, right, _ = draw(1, 12, 3, 4, 2, jnp.float32)
    total = None
    for start in range(0, 12, 4):
        chunk = slice(start, start + 4)
        total = rank_update(weights[chunk], left[chunk], right[chunk], accumulator=total)
    assert_matches(total, weights, left, right)


def test_layers_stack_under_vmap():
    weights, left, right, _ = draw(2, 6, 3, 4, 2, jnp.float32)
    layers = jax.vmap(rank_update, in_axes=(None, 0, 0))
    stacked = layers(weights, jnp.stack([left, -left]), jnp.stack([right, 2 * right]))
    assert_matches(stacked[0], weights, left, right)
    assert_matches(stacked[1], weights, -left, 2 * right)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_is_one_product(rank):
    members, m, n = 17, 5, 7
    weights, left, right, _ = draw(0, members, m, n, rank, jnp.bfloat16)
    jaxpr = jax.make_jaxpr(rank_update)(weights, left, right).jaxpr
    products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 1
    assert products[0].outvars[0].aval.shape == (m, n)
    assert products[0].params["precision"] == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    shapes = [v.aval.shape for e in jaxpr.eqns for v in e.outvars]
    assert not [s for s in shapes if {members, m, n} <= set(s)]


@pytest.mark.parametrize(
    "shapes",
    [
        [(3,), (4, 5, 1), (4, 6, 1)],
        [(4,), (4, 5, 1), (3, 6, 1)],
        [(4,), (4, 5, 2), (4, 6, 1)],
        [(4,), (4, 5, 0), (4, 6, 0)],
        [(4,), (4, 5), (4, 6)],
        [(4, 1), (4, 5, 1), (4, 6, 1)],
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(shapes):
    weights, left, right = (jnp.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"got weights \[.*needs weights \[P\].*put the members first"):
        rank_update(weights, left, right)


def test_accumulator_of_another_shape():
    weights, left, right, accumulator = draw(0, 2, 3, 4, 1, jnp.float32)
    with pytest.raises(ValueError, match=r"got accumulator \[4, 3\]; left and right need \[3, 4\]"):
        rank_update(weights, left, right, accumulator=accumulator.T)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"got weights of dtype int32; .*weights.astype"):
        rank_update(jnp.ones((2,), jnp.int32), jnp.ones((2, 3, 1)), jnp.ones((2, 4, 1)))
