"""Rules that move axes: alone, and in random chains that end in a product."""

from __future__ import annotations

import math

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.interpreter import DenseFallbackError, Unsupported
from eggroll.engine.rules.linear import axis_groups
from tests.engine.truth import check, check_never_dense, compressible, integers, low_rank, ownerships, weights


def ended(change):
    """`change` of the weight, then a product with every axis of what it gave."""

    def fun(w, x):
        return jnp.tensordot(change(w), x, x.ndim)

    return fun


def verify(change, w, out_shape, never_dense=True):
    x = integers(7, out_shape)
    check(ended(change), w, x)
    if never_dense and compressible(w):
        check_never_dense(ended(change), w, x)


@given(weights(min_ndim=2), st.data())
def test_transpose(w, data):
    order = data.draw(st.permutations(range(len(w.shape))))
    verify(lambda w: jnp.transpose(w, order), w, [w.shape[a] for a in order])


@given(weights(), st.data())
def test_rev(w, data):
    axes = data.draw(st.sets(st.integers(0, len(w.shape) - 1)))
    verify(lambda w: lax.rev(w, tuple(axes)), w, w.shape)


@given(weights(sizes=st.sampled_from([1, 1, 3])), st.data())
def test_squeeze_and_expand_dims(w, data):
    ones = [a for a, n in enumerate(w.shape) if n == 1]
    gone = tuple(data.draw(st.sets(st.sampled_from(ones)))) if ones else ()
    kept = [n for a, n in enumerate(w.shape) if a not in gone]
    new = data.draw(st.sets(st.integers(0, len(kept))))
    shape = list(kept)
    for a in sorted(new):
        shape.insert(a, 1)
    verify(lambda w: jnp.expand_dims(lax.squeeze(w, gone), tuple(sorted(new))), w, shape)


@given(weights(max_ndim=3, sizes=st.sampled_from([1, 2, 3])), st.data())
def test_broadcast_in_dim(w, data):
    """New axes in any place, and axes of size one grown."""
    n_new = data.draw(st.integers(0, 2))
    ndim = len(w.shape) + n_new
    places = sorted(data.draw(st.permutations(range(ndim)))[: len(w.shape)])
    shape = data.draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim))
    for a, place in enumerate(places):
        if w.shape[a] != 1:
            shape[place] = w.shape[a]
    verify(lambda w: lax.broadcast_in_dim(w, shape, places), w, shape)
    # The last part along each axis: a factor that still owned an axis which grew would have none.
    last = tuple(slice(n - 1, n) for n in shape)
    verify(lambda w: lax.broadcast_in_dim(w, shape, places)[last], w, [1] * ndim, never_dense=False)


@given(st.data())
def test_split_and_merge_one_factors_axes(data):
    """[a·b, c] with left on 0 → [a, b, c] → [a·b, c] in another split."""
    sizes = [data.draw(st.sampled_from([1, 2, 3, 4])) for _ in range(3)]
    a, b, c = sizes
    swap = data.draw(st.booleans())
    left, right = ((1,), (0,)) if swap else ((0,), (1,))
    w = low_rank(data.draw(st.integers(0, 99)), (a * b, c), left, right, data.draw(st.integers(1, 6)))
    verify(lambda w: w.reshape(a, b, c), w, (a, b, c))
    verify(lambda w: w.reshape(1, b, 1, a, c).reshape(b * a, 1, c), w, (b * a, 1, c))


@st.composite
def reshapes(draw):
    """A shape, another of equal size made of splits and merges of runs of axes, and the runs."""
    runs = draw(st.lists(st.sampled_from([(2, 3), (3, 2), (6,), (2,), (4,), (2, 2), (2, 1, 3), (1,)]), max_size=3))
    other = {6: [(2, 3), (3, 2), (6,), (1, 6)], 2: [(2,), (2, 1)], 4: [(4,), (2, 2)], 1: [(), (1,), (1, 1)]}
    new = [draw(st.sampled_from(other[math.prod(run)])) for run in runs]
    return runs, sum(runs, ()), sum(new, ())


@given(reshapes(), st.data())
def test_reshape_of_axes_that_have_one_owner(case, data):
    """Whole runs are owned alike, so no reshape merges axes of two factors."""
    runs, shape, new_shape = case
    owners = [data.draw(st.sampled_from("lrb")) for _ in runs]
    each = [o for o, run in zip(owners, runs, strict=True) for _ in run]
    left, right = ([a for a, o in enumerate(each) if o in side] for side in ("lb", "rb"))
    w = low_rank(data.draw(st.integers(0, 99)), shape, left, right, data.draw(st.integers(1, 6)))
    verify(lambda w: w.reshape(new_shape), w, new_shape)


@given(reshapes(), st.data())
def test_any_reshape_is_right(case, data):
    """Whatever the owners, the value is right; a fallback is allowed."""
    _, shape, new_shape = case
    left, right = data.draw(ownerships(len(shape)))
    w = low_rank(data.draw(st.integers(0, 99)), shape, left, right, data.draw(st.integers(1, 3)))
    check(ended(lambda w: w.reshape(new_shape)), w, integers(7, new_shape), fallback="allow")


@pytest.mark.parametrize(
    ("left", "right", "new_shape"),
    [((0,), (1,), (12,)), ((0,), (1,), (2, 6)), ((0, 1), (1,), (12,)), ((0, 1), (0, 1), (12,))],
)
def test_merging_axes_of_both_factors(left, right, new_shape):
    """Only where both own every merged axis is there a factored form."""
    w = low_rank(1, (4, 3), left, right, 2)
    x = integers(1, new_shape)
    fun = ended(lambda w: w.reshape(new_shape))
    check(fun, w, x, fallback="allow")
    if left == right:
        check(fun, w, x)
    else:
        with pytest.raises(DenseFallbackError, match=r"`reshape`.*merges axes of both factors"):
            check(fun, w, x)


def test_merge_with_an_axis_of_no_factor():
    """The factor is repeated along it; a bias that was broadcast over a batch of rows, for one."""
    b = low_rank(1, (6,), (), (0,), 2)
    check(lambda b, x: x * jnp.broadcast_to(b, (2, 3, 6)).reshape(6, 6), b, integers(2, (6, 6)), fallback="allow")
    verify(lambda b: jnp.broadcast_to(b, (2, 3, 6)).reshape(6, 6), b, (6, 6), never_dense=False)
    verify(lambda b: jnp.broadcast_to(b, (2, 3, 6)).reshape(2, 18), b, (2, 18), never_dense=False)


def test_empty_and_scalar():
    w = low_rank(1, (0, 3), (0,), (1,), 2)
    check(ended(lambda w: w.reshape(3, 0)), w, jnp.zeros((3, 0)), fallback="allow")
    s = low_rank(1, (), (), (), 2)
    verify(lambda s: s.reshape(1, 1), s, (1, 1))
    verify(lambda s: jnp.broadcast_to(s, (2, 3)), s, (2, 3))
    verify(lambda s: s.reshape(1, 1).reshape(()), s, ())


def test_axis_groups():
    assert axis_groups((6, 4), (2, 3, 4)) == [([0], [0, 1]), ([1], [2])]
    assert axis_groups((1, 6, 4), (6, 1, 2, 2)) == [([1], [0]), ([2], [2, 3])]
    assert axis_groups((4, 6), (6, 4)) == [([0, 1], [0, 1])]
    assert axis_groups((2, 3, 5), (6, 5)) == [([0, 1], [0]), ([2], [1])]
    assert axis_groups((1, 1), ()) == []
    with pytest.raises(Unsupported, match="empty"):
        axis_groups((0, 3), (0,))


@st.composite
def chains(draw):
    """A weight and a random chain of operations that keep its factors apart."""
    w = draw(weights(min_ndim=2, max_ndim=3, sizes=st.sampled_from([1, 2, 4]), kinds="lrb"))
    shape, steps = list(w.shape), []
    for _ in range(draw(st.integers(2, 5))):
        kind = draw(st.sampled_from(["transpose", "rev", "expand", "squeeze", "split", "broadcast", "scale"]))
        a = draw(st.integers(0, len(shape) - 1)) if shape else None
        if kind == "transpose":
            order = tuple(draw(st.permutations(range(len(shape)))))
            steps.append(lambda w, order=order: jnp.transpose(w, order))
            shape = [shape[i] for i in order]
        elif kind == "rev" and shape:
            steps.append(lambda w, a=a: jnp.flip(w, a))
        elif kind == "expand" and len(shape) < 5:
            place = draw(st.integers(0, len(shape)))
            steps.append(lambda w, place=place: jnp.expand_dims(w, place))
            shape.insert(place, 1)
        elif kind == "squeeze" and 1 in shape:
            one = shape.index(1)
            steps.append(lambda w, one=one: jnp.squeeze(w, one))
            shape.pop(one)
        elif kind == "split" and shape and shape[a] == 4 and len(shape) < 5:
            shape[a : a + 1] = [2, 2]
            steps.append(lambda w, new=tuple(shape): w.reshape(new))
        elif kind == "broadcast" and len(shape) < 4:
            shape.insert(0, 3)
            steps.append(lambda w, new=tuple(shape): jnp.broadcast_to(w, new))
        elif kind == "scale":
            steps.append(lambda w: -2.0 * w)
    return w, steps, shape


@given(chains(), st.data())
def test_chains_that_end_in_a_product(case, data):
    w, steps, shape = case
    contracted = data.draw(st.integers(0, len(shape)))

    def fun(w, x):
        for step in steps:
            w = step(w)
        return jnp.tensordot(w, x, contracted)

    x = integers(3, [*shape[len(shape) - contracted :], 2])
    check(fun, w, x)
    if compressible(w):
        check_never_dense(fun, w, x)
