"""The public leaf and its dense form."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import eggroll
from eggroll.engine.lowrank import Factor, LowRank, Source, Term, accumulator_dtype, as_perturbed
from tests.engine.truth import dense, jit, low_rank, member, member_axes, weights

W = low_rank(1, (3, 4, 5), (0, 1), (0, 2), 2, members=None)


@given(weights(max_ndim=4))
def test_dense_is_the_sum(w):
    many = jit(jax.vmap(lambda w: w.dense(), in_axes=(member_axes(w),)))(w)
    np.testing.assert_array_equal(many, dense(w))
    one = replace(w, left=w.left[0], right=w.right[0])
    assert (one.shape, one.dtype, one.rank) == (w.base.shape, jnp.float32, w.right.shape[-1])


def test_dense_of_a_scalar_and_of_an_empty_array():
    scalar = low_rank(1, (), (), (), 3, members=None)
    np.testing.assert_array_equal(scalar.dense(), dense(scalar))
    assert low_rank(1, (0, 4), (0,), (1,), members=None).dense().shape == (0, 4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dense_is_summed_wide_and_rounded_once(dtype):
    w = low_rank(1, (20, 30), (0,), (1,), 6, members=None)
    w = jax.tree.map(lambda a: (a / 7).astype(dtype), w)
    got = w.dense()
    truth, magnitude = dense(w), dense(jax.tree.map(jnp.abs, w))
    rounding = float(jnp.finfo(dtype).eps) / 2 * np.abs(truth) + 8 * np.finfo(np.float32).eps * magnitude
    assert got.dtype == dtype
    assert np.all(np.abs(np.asarray(got, np.float64) - truth) <= rounding)


def test_dense_in_float64():
    with jax.enable_x64(True):
        w = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64) / 7), W)
        got = w.dense()
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, dense(w), rtol=0, atol=1e-14)
        product = eggroll.factored(lambda w, x: x @ w, fallback="error")(w, jnp.ones((2, 4), jnp.float64))
        np.testing.assert_allclose(product, np.ones((2, 4)) @ dense(w), rtol=0, atol=1e-13)


def test_a_right_leaf_passes():
    W.check()
    low_rank(1, (3,), (), (0,), members=None).check()
    low_rank(1, (), (), (), members=None).check()


WRONG = {
    "left transposed": ({"left": jnp.zeros((4, 3, 2))}, r"left has shape \(4, 3, 2\).*require \(3, 4, 2\)"),
    "right too long": ({"right": jnp.zeros((3, 6, 2))}, r"right has shape \(3, 6, 2\).*rank 2 require \(3, 5, 2\)"),
    "ranks differ": ({"right": jnp.zeros((3, 5, 1))}, "right has shape"),
    "no rank axis": ({"right": jnp.zeros((3, 5))}, "right has shape"),
    "axes out of order": ({"left_axes": (1, 0)}, "left_axes.*ascending"),
    "an axis twice": ({"right_axes": (2, 2)}, "right_axes.*distinct"),
    "a negative axis": ({"right_axes": (0, -1)}, "right_axes.*negative axes are not accepted"),
    "an axis too many": ({"left_axes": (0, 3)}, r"left_axes=\(0, 3\).*shape \(3, 4, 5\)"),
    "another dtype": ({"left": jnp.zeros((3, 4, 2), jnp.bfloat16)}, "left is bfloat16 but its base is float32: cast"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_leaf_is_refused(change, message):
    wrong = replace(W, **change)
    with pytest.raises(ValueError, match=message):
        wrong.check()
    with pytest.raises(ValueError, match=message):
        eggroll.factored(lambda w: w.sum(), fallback="allow")(wrong)


def test_a_leaf_is_a_pytree_of_three_arrays():
    leaves, tree = jax.tree.flatten(W)
    assert [leaf.shape for leaf in leaves] == [(3, 4, 5), (3, 4, 2), (3, 5, 2)]
    same = jax.tree.unflatten(tree, leaves)
    assert (same.left_axes, same.right_axes, same.source) == (W.left_axes, W.right_axes, W.source)
    assert jax.tree.structure(replace(W, source=Source("other"))) != tree
    doubled = jax.jit(lambda w: jax.tree.map(lambda a: 2 * a, w))(W)
    assert isinstance(doubled, LowRank) and doubled.left_axes == (0, 1)


def test_a_member_is_what_vmap_sees():
    w = low_rank(1, (3, 4), (0,), (1,), 2)
    many = jax.vmap(lambda w: w.dense(), in_axes=(member_axes(w),))(w)
    for i in range(3):
        np.testing.assert_array_equal(many[i], member(w, i))


def test_relabel_restores_the_order_of_axes():
    f = Factor(jnp.arange(2 * 3 * 4 * 1.0).reshape(2, 3, 4, 1), (0, 2, 5))
    moved = f.relabel({0: 7, 2: 1, 5: 3})
    assert moved.axes == (1, 3, 7)
    np.testing.assert_array_equal(moved.array, np.transpose(f.array, (1, 2, 0, 3)))


def test_squeeze_and_expand_of_a_factor():
    f = Factor(jnp.ones((1, 3, 1, 2)), (0, 1, 4))
    assert (f.squeeze((1, 3, 9, 9, 1)).axes, f.squeeze((1, 3, 9, 9, 1)).array.shape) == ((1,), (3, 2))
    grown = f.expand(2, 9)
    assert (grown.axes, grown.array.shape) == ((0, 1, 2, 4), (1, 3, 9, 1, 2))
    assert f.position(4) == 2


def test_a_term_knows_its_owners():
    (term,) = as_perturbed(W).terms
    assert isinstance(term, Term) and term.rank == 2
    assert [len(term.owners(a)) for a in range(3)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("complex64", "complex64")],
)
def test_accumulators_are_wide(dtype, wide):
    assert accumulator_dtype(jnp.dtype(dtype)) == jnp.dtype(wide)
