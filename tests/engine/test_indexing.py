"""slice, dynamic_slice, split, unstack and static picks; lookups are in test_gather.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.interpreter import DenseFallbackError
from tests.engine.truth import check, check_never_dense, compressible, integers, low_rank, weights

SIZES = st.integers(1, 5)


def ended(change, out_shape):
    """The part that `change` picks, then a product; with the input of that product."""
    x = integers(7, (*out_shape, 2))
    return lambda w, x, change=change: jnp.tensordot(change(w), x, x.ndim - 1), x


def verify(change, w, never_dense=True):
    fun, x = ended(change, change(np.asarray(w.base)).shape)
    check(fun, w, x)
    if never_dense and compressible(w):
        check_never_dense(fun, w, x)


@given(weights(max_ndim=3, sizes=SIZES), st.data())
def test_slice(w, data):
    parts = []
    for n in w.shape:
        start = data.draw(st.integers(0, n))
        parts.append((start, data.draw(st.integers(start, n)), data.draw(st.integers(1, 3))))
    start, limit, strides = zip(*parts, strict=True)
    picked = tuple(slice(*p) for p in parts)

    def change(w):
        return w[picked] if isinstance(w, np.ndarray) else lax.slice(w, start, limit, strides)

    verify(change, w)


@given(weights(max_ndim=3, sizes=SIZES), st.data())
def test_dynamic_slice(w, data):
    """Starts beyond the end, or negative, clamp for the factors as for the base."""
    sizes = [data.draw(st.integers(1, n)) for n in w.shape]
    starts = jnp.asarray(np.array([data.draw(st.integers(-2, n + 1)) for n in w.shape], np.int32))
    picked = lambda w, starts: lax.dynamic_slice(w, list(starts), sizes)  # noqa: E731
    x = integers(7, (*sizes, 2))

    def fun(w, starts, x):
        return jnp.tensordot(picked(w, starts), x, x.ndim - 1)

    check(fun, w, starts, x)
    if compressible(w):
        check_never_dense(fun, w, starts, x)


@pytest.mark.parametrize(("left", "right"), [((0,), (1,)), ((0, 1), (0, 2)), ((2,), (1,)), ((0,), (1, 2))])
def test_every_member_slices_elsewhere(left, right):
    w = low_rank(1, (4, 5, 6), left, right, 2)
    x = integers(2, (5, 6))
    starts = jnp.array([0, 3, 9])

    def fun(w, i, x):
        return jnp.einsum("kn,kn->", lax.dynamic_index_in_dim(w, i, 0, False), x)

    check(fun, w, starts, x, per_member=[0])


@given(weights(max_ndim=3, sizes=SIZES), st.data())
def test_split(w, data):
    axis = data.draw(st.integers(0, len(w.shape) - 1))
    n = w.shape[axis]
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=2)))
    first = data.draw(st.integers(0, len(cuts)))
    sizes = np.diff([0, *cuts, n])

    def change(w):
        parts = np.split(w, cuts, axis) if isinstance(w, np.ndarray) else lax.split(w, sizes, axis)
        return parts[first]

    verify(change, w)


@given(weights(max_ndim=3, sizes=SIZES), st.data())
def test_unstack(w, data):
    axis = data.draw(st.integers(0, len(w.shape) - 1))
    i = data.draw(st.integers(0, w.shape[axis] - 1))
    change = lambda w: np.take(w, i, axis) if isinstance(w, np.ndarray) else jnp.unstack(w, axis=axis)[i]  # noqa: E731
    verify(change, w, never_dense=False)


@pytest.mark.parametrize(("left", "right"), [((0, 1), (0, 2)), ((0, 1), (2,)), ((1,), (2,)), ((2,), (0, 1))])
def test_unpacking(left, right):
    """`a, b, c = w`, which newer JAX makes an unstack and older a slice."""
    w = low_rank(1, (3, 8, 8), left, right, 2)

    def fun(w, x):
        a, b, c = w
        return x @ a @ b.T + x @ c

    check(fun, w, integers(2, (2, 8)))
    check_never_dense(fun, w, integers(2, (2, 8)), limit=8 * 8, strict=True)


def test_all_parts_of_a_split_are_used():
    """Queries, keys and values out of one projection."""
    w = low_rank(1, (6, 12), (0,), (1,), 2)
    x = integers(2, (3, 6))

    def fun(w, x):
        q, k, v = jnp.split(w, 3, axis=1)
        return (x @ q) @ (x @ k).T @ (x @ v)

    check(fun, w, x)
    check_never_dense(fun, w, x)


PICKS = [(1,), (-1,), (slice(1, 3),), (slice(None), 2), (1, 2), (..., slice(None, None, 2))]


@pytest.mark.parametrize(("left", "right"), [((0,), (1,)), ((0, 1), (0, 2)), ((0, 1), (2,)), ((2,), (1,))])
def test_constant_picks(left, right):
    w = low_rank(1, (4, 5, 6), left, right, 2)
    each = [ended(lambda w, index=index: w[index], np.asarray(w.base)[index].shape) for index in PICKS]

    def fun(w, xs):
        return [picked(w, x) for (picked, _), x in zip(each, xs, strict=True)]

    xs = [x for _, x in each]
    check(fun, w, xs)
    if compressible(w):
        check_never_dense(fun, w, xs)


@pytest.mark.parametrize(("left", "right"), [((0,), (1,)), ((0, 1), (0, 2)), ((0, 1), (2,)), ((2,), (1,))])
def test_picks_at_a_traced_position(left, right):
    """`W[i]`, `W[i, j]` and `W[:, j]`, in and out of bounds."""
    w = low_rank(1, (4, 5, 6), left, right, 2)

    def fun(w, places, xs):
        return [(xs[0] @ w[i], w[i, i - 1] @ xs[1], xs[2] @ w[:, i]) for i in places]

    places, xs = [np.int32(i) for i in (2, -1, 7)], [integers(2, shape) for shape in ((2, 5), (6, 2), (2, 4))]
    check(fun, w, places, xs)
    check_never_dense(fun, w, places, xs)


def test_an_embedded_row_is_an_activation():
    """One token at a time, as in decoding."""
    w = low_rank(1, (12, 5), (0,), (1,), 2)
    for i in (3, -1, 99):
        check(lambda w, i: jnp.maximum(w[i], 1.0), w, jnp.int32(i))
    check_never_dense(lambda w, i: jnp.maximum(w[i], 1.0), w, jnp.int32(3), strict=True)


def test_a_perturbed_position_falls_back():
    """The position is an integer, so the fallback is at the cast."""
    p = {"w": low_rank(1, (4, 5), (0,), (1,), 2), "i": low_rank(2, (), (), (), path="i")}
    fun = lambda p, x: x @ p["w"][p["i"].astype(jnp.int32)]  # noqa: E731
    check(fun, p, integers(3, (2, 5)), fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"'i'.*`convert_element_type`"):
        check(fun, p, integers(3, (2, 5)))
