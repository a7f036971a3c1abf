"""`lowrank_dot` against NumPy in float64, alone and under vmap, and what it compiles to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.kernels import lowrank_dot

DTYPES = st.sampled_from([jnp.float32, jnp.bfloat16])
SIZES = st.integers(1, 9)
ROWS = st.lists(st.integers(1, 4), max_size=2).map(tuple)
LAST_WITH_FIRST = (((1,), (0,)), ((), ()))


def draw(seed: int, *shapes_and_dtypes) -> list[jax.Array]:
    """Draw normal arrays, rounded to their dtypes before anything is computed from them."""
    rng = np.random.default_rng(seed)
    return [jax.device_put(np.asarray(rng.normal(size=shape), dtype)) for shape, dtype in shapes_and_dtypes]


def assert_matches(y, x, w, left, right) -> None:
    """Assert that `y` is `x·(w + left·rightᵀ)` up to the rounding of its sums and of its own dtype."""
    x, w, left, right = (np.asarray(a, np.float64) for a in (x, w, left, right))
    truth = x @ (w + left @ right.T)
    magnitude = np.abs(x) @ (np.abs(w) + np.abs(left) @ np.abs(right).T)
    terms = w.shape[0] + left.shape[1] + 4
    sums = terms * np.finfo(np.float32).eps * magnitude
    output = float(jnp.finfo(y.dtype).eps) * magnitude  # XLA may sum the base product in the output's dtype
    assert np.all(np.abs(np.asarray(y, np.float64) - truth) <= sums + output)


@given(rows=ROWS, k=SIZES, n=SIZES, rank=st.integers(1, 7), seed=st.integers(0, 99), dtype=DTYPES, factor=DTYPES)
def test_one_member(rows, k, n, rank, seed, dtype, factor):
    x, w, left, right = draw(seed, ((*rows, k), dtype), ((k, n), dtype), ((k, rank), factor), ((n, rank), factor))
    y = lowrank_dot(x, w, left, right)
    assert y.shape == (*rows, n) and y.dtype == dtype
    assert_matches(y, x, w, left, right)


@given(
    members=st.integers(1, 5), rows=ROWS, rank=st.integers(1, 7), seed=st.integers(0, 99),
    dtype=DTYPES, shared=st.booleans(),
)  # fmt: skip
def test_population_equals_its_members(members, rows, rank, seed, dtype, shared):
    k, n = 5, 6
    batch = () if shared else (members,)
    x, w, left, right = draw(
        seed,
        ((*batch, *rows, k), dtype),
        ((k, n), dtype),
        ((members, k, rank), dtype),
        ((members, n, rank), dtype),
    )
    population = jax.jit(jax.vmap(lowrank_dot, in_axes=(None if shared else 0, None, 0, 0)))
    y = population(x, w, left, right)
    assert y.shape == (members, *rows, n)
    for i in range(members):
        assert_matches(y[i], x if shared else x[i], w, left[i], right[i])


@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("w_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("preferred", [None, jnp.float32, jnp.bfloat16])
def test_output_dtype_is_that_of_dot_general(x_dtype, w_dtype, preferred):
    x, w, left, right = draw(0, ((2, 3), x_dtype), ((3, 4), w_dtype), ((3, 5), jnp.float32), ((4, 5), jnp.bfloat16))
    expected = lax.dot_general(x, w, LAST_WITH_FIRST, preferred_element_type=preferred).dtype
    y = lowrank_dot(x, w, left, right, preferred_element_type=preferred)
    assert y.dtype == expected
    assert_matches(y, x, w, left, right)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x, w, left, right = draw(0, *((shape, jnp.float64) for shape in [(2, 3), (3, 4), (3, 2), (4, 2)]))
        y = lowrank_dot(x, w, left, right)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, x @ (w + left @ right.T), rtol=1e-13)


def test_correction_survives_in_bfloat16():
    """The thin product is accumulated in float32: 600 ones, which bfloat16 cannot count beyond 256."""
    x, w = jnp.ones((600,), jnp.bfloat16), jnp.zeros((600, 1), jnp.bfloat16)
    left, right = jnp.ones((600, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.bfloat16)
    assert float(lowrank_dot(x, w, left, right)[0]) == 600


@pytest.mark.parametrize("precision", ["high", lax.Precision.HIGHEST, ("default", "highest"), "F32_F32_F32"])
def test_precision_reaches_the_base_product_unchanged(precision):
    x, w, left, right = draw(0, *((shape, jnp.float32) for shape in [(2, 3), (3, 4), (3, 2), (4, 2)]))
    plain = jax.make_jaxpr(lambda: lax.dot_general(x, w, LAST_WITH_FIRST, precision=precision))()
    ours = jax.make_jaxpr(lambda: lowrank_dot(x, w, left, right, precision=precision))()
    assert ours.eqns[0].params == plain.eqns[0].params
    assert_matches(lowrank_dot(x, w, left, right, precision=precision), x, w, left, right)


@pytest.mark.parametrize("rank", [1, 4, 5, 16])
@pytest.mark.parametrize("shared", [False, True], ids=["inputs-of-each-member", "shared-inputs"])
def test_members_share_one_product_with_w(rank, shared):
    members, rows, k, n = 7, 3, 11, 13
    x, w, left, right = draw(
        0, ((rows, k) if shared else (members, rows, k), jnp.float32), ((k, n), jnp.float32),
        ((members, k, rank), jnp.float32), ((members, n, rank), jnp.float32),
    )  # fmt: skip
    population = jax.vmap(lowrank_dot, in_axes=(None if shared else 0, None, 0, 0))
    jaxpr = jax.make_jaxpr(population)(x, w, left, right).jaxpr
    products_with_w = [e for e in jaxpr.eqns if jaxpr.invars[1] in e.invars]
    assert [e.primitive.name for e in products_with_w] == ["dot_general"]
    assert products_with_w[0].outvars[0].aval.shape == ((rows, n) if shared else (members, rows, n))
    # Nothing as large as a weight for each member exists, under any order of its axes.
    assert max(v.aval.size for e in jaxpr.eqns for v in e.outvars) < members * k * n


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 4), (3, 5), (3, 1), (5, 1)],
        [(2, 3), (3, 5), (4, 1), (5, 1)],
        [(2, 3), (3, 5), (3, 1), (3, 1)],
        [(2, 3), (3, 5), (3, 2), (5, 1)],
        [(2, 3), (3, 5), (3, 0), (5, 0)],
        [(2, 3), (3, 5), (3,), (5,)],
        [(), (3, 5), (3, 1), (5, 1)],
        [(2, 3), (7, 3, 5), (3, 1), (5, 1)],
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(shapes):
    x, w, left, right = (jnp.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"got x \[.*needs x \[\.\.\., K\].*r >= 1: transpose or reshape"):
        lowrank_dot(x, w, left, right)


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"got x of dtype int32; .*x.astype"):
        lowrank_dot(jnp.ones((2, 3), jnp.int32), jnp.ones((3, 4)), jnp.ones((3, 1)), jnp.ones((4, 1)))
