"""Lookups: `jnp.take`, `x[ids]`, and gathers of any form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.factored import factored
from eggroll.engine.interpreter import DenseFallbackError
from tests.engine.truth import check, check_never_dense, dense, integers, low_rank, member_axes, weights
from tests.quick import quickest

IDS = jnp.array([[0, 3, 1], [3, 2, 2]])
OUTSIDE = jnp.array([[0, -1, 4], [-9, 2, 99]])
EMBEDDINGS = [((0,), (1,)), ((1,), (0,)), ((0, 1), (0,)), ((0,), ()), ((0,), (0, 1))]


LOOK_UPS = {
    "index": lambda w, ids: w[ids],
    "take": lambda w, ids: jnp.take(w, ids, axis=0),
    "clip": lambda w, ids: jnp.take(w, ids, axis=0, mode="clip"),
    "wrap": lambda w, ids: jnp.take(w, ids, axis=0, mode="wrap"),
    "fill": lambda w, ids: jnp.take(w, ids, axis=0, mode="fill", fill_value=7.0),
    "at-fill": lambda w, ids: w.at[ids].get(mode="fill", fill_value=-2.0),
    "at-clip": lambda w, ids: w.at[ids].get(mode="clip"),
    "at-drop": lambda w, ids: w.at[ids].get(mode="drop"),
    "axis-1": lambda w, ids: jnp.take(w.T, ids, axis=1),
    "vmap": lambda w, ids: jax.vmap(lambda i: w[i])(ids),
    "row by row": lambda w, ids: jax.vmap(jax.vmap(lambda i: w[i]))(ids),
}


@pytest.mark.parametrize(("left", "right"), EMBEDDINGS)
@pytest.mark.parametrize(
    "name", quickest(LOOK_UPS, *(name for name in LOOK_UPS if name not in ("take", "at-clip", "vmap")))
)
def test_embedding(left, right, name):
    """Rows are activations, unless both factors were looked up: then they stay factored."""
    w, look_up = low_rank(1, (4, 5), left, right, 2), LOOK_UPS[name]

    def both(w, inside, outside):
        return look_up(w, inside), look_up(w, outside)

    check(both, w, IDS, OUTSIDE, fallback="allow" if set(left) & set(right) else "error")


def test_promised_in_bounds():
    w = low_rank(1, (4, 5), (0,), (1,), 2)
    check(lambda w, ids: w.at[ids].get(mode="promise_in_bounds"), w, IDS)


def test_an_embedding_is_never_dense():
    w = low_rank(1, (40, 8), (0,), (1,))
    for fun in (lambda w, ids: w[ids], lambda w, ids: jnp.take(w, ids, axis=0, mode="wrap")):
        check_never_dense(fun, w, IDS, strict=True)
    # Constant positions, so that what is picked counts as a weight.
    check_never_dense(lambda w, x: w[np.array([1, 2, 5])] @ x, w, integers(1, (8, 2)), strict=True)


def test_every_member_looks_up_other_rows():
    w = low_rank(1, (4, 5), (0,), (1,), 2)
    check(lambda w, ids: w[ids], w, jnp.array([[0, 1], [3, 3], [2, 0]]), per_member=[0])


@given(weights(max_ndim=3), st.data())
def test_take_along_any_axis(w, data):
    axis = data.draw(st.integers(0, len(w.shape) - 1))
    mode = data.draw(st.sampled_from(["fill", "clip", "wrap"]))
    ids = np.array(data.draw(st.lists(st.integers(-3, 6), min_size=1, max_size=3)), np.int32)
    owned = axis in (*w.left_axes, *w.right_axes)

    def fun(w, ids):
        return jnp.take(w, ids, axis=axis, mode=mode, fill_value=3.0 if mode == "fill" else None)

    # What is picked along one side only is an activation; else the picked weight still meets the product factored.
    x = integers(5, (*w.shape[:axis], len(ids), *w.shape[axis + 1 :]))
    product = lambda w, ids, x: jnp.tensordot(fun(w, ids), x, x.ndim)  # noqa: E731
    check(product, w, ids, x, fallback="error" if owned else "allow")


@st.composite
def gathers(draw):
    """Gathers with several indexed axes, partial windows, and index columns and offset axes in any order."""
    w = draw(weights(max_ndim=3))
    ndim = len(w.shape)
    indexed = draw(st.permutations(range(ndim)))[: draw(st.integers(0, ndim))]
    collapsed = tuple(a for a in range(ndim) if draw(st.booleans()))
    sizes = tuple(1 if a in collapsed else draw(st.sampled_from([1, n, n])) for a, n in enumerate(w.shape))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    rows = draw(st.lists(st.integers(-2, 5), min_size=1, max_size=12))
    indices = np.resize(np.array(rows, np.int32), (*batch, len(indexed)))
    out_ndim = len(batch) + ndim - len(collapsed)
    offsets = tuple(sorted(draw(st.permutations(range(out_ndim)))[: ndim - len(collapsed)]))
    numbers = lax.GatherDimensionNumbers(offsets, collapsed, tuple(indexed))
    mode = draw(st.sampled_from(["fill", "clip"]))
    return w, jnp.asarray(indices), numbers, sizes, mode


@given(gathers())
def test_any_gather(case):
    w, indices, numbers, sizes, mode = case

    def fun(w, indices):
        fill = 5.0 if mode == "fill" else None
        return 2 * lax.gather(w, indices, numbers, sizes, mode=mode, fill_value=fill)

    # The product by two meets a weight that is still factored where both sides were looked up.
    check(fun, w, indices, fallback="allow")


@pytest.mark.parametrize("ids", [jnp.array([2, 0, 2]), jnp.array([-1, 9, 1])], ids=["inside", "outside"])
def test_experts_chosen_by_id(ids):
    """A lookup along a batch axis of both factors leaves the weight factored: one product per token."""
    w = low_rank(1, (3, 8, 6), (0, 1), (0, 2), 2)
    x = integers(2, (3, 8))
    for mode in ("fill", "clip"):
        fun = lambda w, x, ids, mode=mode: jnp.einsum(  # noqa: E731
            "tk,tkn->tn", x, jnp.take(w, ids, axis=0, mode=mode, fill_value=0.0 if mode == "fill" else None)
        )
        check(fun, w, x, ids)
        check_never_dense(fun, w, x, ids, limit=3 * 8 * 6)


def test_experts_in_a_loop():
    w = low_rank(1, (3, 8, 6), (0, 1), (0, 2), 2)
    x = integers(2, (4, 8))
    fun = lambda w, x: jnp.stack([x @ w[i] for i in range(3)])  # noqa: E731
    check(fun, w, x)
    check_never_dense(fun, w, x, limit=8 * 6)


def test_an_index_on_one_side_keeps_a_weight_factored():
    """Left owns experts and inputs, right the outputs: a chosen expert is a weight, not an activation."""
    w = low_rank(1, (3, 8, 6), (0, 1), (2,), 2)
    ids, x = jnp.array([2, 0, 2, 1]), integers(2, (4, 8))
    fun = lambda w, x, ids: jnp.einsum("tk,tkn->tn", x, w[ids])  # noqa: E731
    check(fun, w, x, ids)
    check_never_dense(fun, w, x, ids, limit=3 * 8 * 6, strict=True)


def test_tied_embedding():
    w = low_rank(1, (12, 4), (0,), (1,), 2)
    fun = lambda w, ids: w[ids] @ w.T  # noqa: E731
    check(fun, w, jnp.array([1, 11, 4]))
    check_never_dense(fun, w, jnp.array([1, 11, 4]), strict=True)


def test_positions_that_vary_along_the_other_axis_fall_back():
    """`take_along_axis` pairs index rows with weight rows."""
    w = low_rank(1, (4, 5), (0,), (1,), 2)
    fun = lambda w, ids: jnp.take_along_axis(w, ids, axis=0)  # noqa: E731
    ids = jnp.array([[0, 1, 3, 2, 2], [1, 1, 1, 0, 3]])
    check(fun, w, ids, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"`gather`.*positions vary"):
        check(fun, w, ids)


def test_an_axis_of_no_factor():
    w = low_rank(1, (4, 5), (), (1,), 2)
    check(lambda w, ids: w[ids], w, IDS)
    check(lambda w, ids: jnp.take(w, ids, axis=0).sum(-1), low_rank(1, (4, 5), (0,), (), 2), OUTSIDE, fallback="allow")


def test_filled_rows_are_filled_exactly():
    """The perturbation adds nothing to a fill value, not even where it is not a number."""
    w = low_rank(1, (4, 5), (0,), (1,), 2)
    got = jax.vmap(factored(lambda w, ids: jnp.take(w, ids, axis=0)), in_axes=(member_axes(w), None))(w, OUTSIDE)
    missing = np.isnan(np.asarray(got)).all(-1)
    np.testing.assert_array_equal(missing, np.broadcast_to([[0, 0, 1], [1, 0, 1]], (3, 2, 3)))
    assert np.isnan(got).sum() == 3 * 3 * 5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rows_are_rounded_once(dtype):
    """Base and perturbation are added in float32, and rounded once."""
    w = low_rank(1, (4, 50), (0,), (1,), 6, dtype=dtype)
    w = jax.tree.map(lambda a: (a.astype(jnp.float32) / 3).astype(dtype), w)
    rows = jax.vmap(factored(lambda w, ids: w[ids]), in_axes=(member_axes(w), None))(w, IDS)
    truth, magnitude = (dense(leaf)[:, IDS] for leaf in (w, jax.tree.map(jnp.abs, w)))
    rounding = float(jnp.finfo(dtype).eps) / 2 * np.abs(truth) + 8 * np.finfo(np.float32).eps * magnitude
    assert rows.dtype == dtype
    assert np.all(np.abs(np.asarray(rows, np.float64) - truth) <= rounding)


PAIRS = lax.GatherDimensionNumbers((), (0, 1), (0, 1))
ROWS = lax.GatherDimensionNumbers((1,), (0,), (0,))


@pytest.mark.parametrize(
    "fun",
    [
        lambda w: lax.gather(w, np.array([[0, 1], [3, 2]]), PAIRS, (1, 1)),
        lambda w: lax.gather(w, np.array([[0], [3]]), ROWS, (1, 3), mode="fill"),
        lambda w: jax.vmap(lambda ids: lax.gather(w, ids, PAIRS, (1, 1)))(np.array([[[0, 1]], [[3, 2]]])),
        lambda w: lax.dynamic_slice(w, np.array([1, 1]), (2, 2)),
    ],
    ids=["numbers", "rows", "vmap", "slice"],
)
def test_constant_positions_may_be_numpys(fun):
    w = low_rank(1, (4, 3), (0,), (1,), 2)
    ones = jnp.ones(jax.eval_shape(fun, w.base).shape)
    check(lambda w: jnp.tensordot(fun(w), ones, ones.ndim), w)


def test_positions_given_as_numpys_array():
    fun = lambda w, ids: 2 * lax.gather(w, ids, PAIRS, (1, 1))  # noqa: E731
    w = low_rank(1, (4, 3), (0,), (1,), 2, members=None)
    got = jax.jit(lambda w: factored(fun, fallback="allow")(w, np.array([[0, 1], [3, 2]])))(w)
    np.testing.assert_array_equal(got, 2 * dense(w)[[0, 3], [1, 2]])
