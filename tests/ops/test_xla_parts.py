"""`rank_update` as a product of bfloat16 parts: as accurate as float32 sums, from one product on tensor cores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.kernels import rank_update
from eggroll.ops import registry
from eggroll.ops.truth import FLOAT32, seeded, update_truth
from eggroll.ops.xla_parts import rank_update_parts
from tests.ops.test_rank_update import SIZES, assert_matches, draw

pytestmark = pytest.mark.optimised  # bits, as users get them

KINDS = [(d, t) for d in ("rademacher", "normal") for t in ("float32", "bfloat16")]


@pytest.mark.slow
@given(
    members=st.integers(1, 12), m=SIZES, n=SIZES, rank=st.integers(1, 6), seed=st.integers(0, 99),
    dtypes=st.tuples(*[st.sampled_from([jnp.float32, jnp.bfloat16])] * 3), accumulate=st.booleans(),
)  # fmt: skip
def test_equals_the_sum_over_members(members, m, n, rank, seed, dtypes, accumulate):
    weights, left, right, accumulator = draw(seed, members, m, n, rank, jnp.float32)
    weights, left, right = (x.astype(dtype) for x, dtype in zip((weights, left, right), dtypes, strict=True))
    added = accumulator if accumulate else None
    update = jax.jit(rank_update_parts)(weights, left, right, accumulator=added)
    assert update.shape == (m, n) and update.dtype == jnp.float32
    assert_matches(update, weights, left, right, accumulator if accumulate else 0.0)


@pytest.mark.first(1)
@pytest.mark.parametrize(("distribution", "dtype"), KINDS)
def test_from_keys(distribution, dtype):
    """Weights times noise of half precision are rounded once, everything else is as float32 has it."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=40), jnp.float32)
    left, right = (seeded(i, 40, size, 2, distribution, dtype) for i, size in ((1, 30), (2, 50)))
    truth, magnitude = update_truth(weights, left, right)
    update = rank_update(weights, left, right, implementation="xla_parts")
    rounding = 2.0**-8 if dtype == "bfloat16" else 0.0
    assert np.all(np.abs(np.asarray(update, np.float64) - truth) <= ((40 * 2 + 4) * FLOAT32 + rounding) * magnitude)


def test_nothing_is_lost_where_weights_cancel():
    """Two parts would lose the last eight bits of these weights."""
    weights = jnp.asarray([1 + 2.0**-10 + 2.0**-23, -1 - 2.0**-10], jnp.float32)
    ones = jnp.ones((2, 3, 1))
    np.testing.assert_array_equal(rank_update_parts(weights, ones, ones), np.full((3, 3), 2.0**-23))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_product_of_bfloat16(dtype):
    specs = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((8,), (8, 16, 1), (8, 32, 1))]
    text = jax.jit(rank_update_parts).lower(*specs).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 1 and products[0].count("xbf16>") == 2 and "xf32>" in products[0]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_numbers_are_left_to_the_reference(dtype, monkeypatch):
    """A GPU tries it before the reference."""
    monkeypatch.setattr(registry, "current_platform", lambda: "gpu")
    with jax.enable_x64(True):
        weights, *factors, _ = (x.astype(dtype) for x in draw(0, 6, 4, 5, 2, jnp.float64))
        with pytest.raises(NotImplementedError, match=f"numbers of {dtype}: float32 and bfloat16"):
            rank_update(weights, *factors, implementation="xla_parts")
        want = rank_update(weights, *factors, implementation="reference")
        np.testing.assert_array_equal(rank_update(weights, *factors), want)


@pytest.mark.parametrize("capability", ["7.5", "gfx90a"])
def test_only_where_bfloat16_is_fast(capability, monkeypatch):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(NotImplementedError, match=f"compute capability {capability}"):
        rank_update_parts(jnp.ones(2), jnp.ones((2, 3, 1)), jnp.ones((2, 4, 1)))
