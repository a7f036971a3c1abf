"""Arguments: shared, one row per member, one row per group; prefixes as in `jax.vmap`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.strategy.evaluate.tracing import make_rows
from tests.strategy.common import KEY, es

pytestmark = pytest.mark.optimised  # bits, as users get them

N = 12


class Batch(NamedTuple):
    x: object
    y: object


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def axes(args, in_axes, groups=1):
    return make_rows(args, in_axes, N, groups).axes


A, B, C = numbered(N, 2), numbered(3, N), numbered(5)


@pytest.mark.parametrize(
    ("args", "in_axes", "expected"),
    [
        ((), None, ()),
        ((A, B), None, (None, None)),
        ((A, A), 0, (0, 0)),
        ((A, B, C), (0, 1, None), (0, 1, None)),
        ((A, B), [0, -1], (0, 1)),
        (({"a": A, "c": C},), ({"a": 0, "c": None},), (0, None)),
        (({"a": A, "c": {"x": C, "y": C}},), ({"a": 0, "c": None},), (0, None, None)),
        (({"c": {"x": A, "y": A}},), ({"c": 0},), (0, 0)),
        (([A, {"b": B}], C), ([0, {"b": 1}], None), (0, 1, None)),
        (([A, B], [C]), ((0, None), None), None),  # a tuple is no prefix of a list
        ((Batch(A, C),), (Batch(0, None),), (0, None)),
        (
            ({"a": A, "flag": True, "name": "x", "none": None},),
            ({"a": 0, "flag": None, "name": None, "none": None},),
            (0,),
        ),
        (({"a": A, "flag": True, "none": None},), (0,), (0,)),
        (([], {}, None, A), (None, None, None, 0), (0,)),
        (([None, A],), ([None, 0],), (0,)),
        ((jnp.asarray(A), jax.ShapeDtypeStruct((N, 4), jnp.float32)), 0, (0, 0)),
    ],
)
def test_axes_of_each_array(args, in_axes, expected):
    if expected is None:
        with pytest.raises(ValueError, match="is not a prefix of its argument"):
            axes(args, in_axes)
    else:
        assert axes(args, in_axes) == expected


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 12])
def test_members_of_a_group_see_its_row(groups):
    own, shared = numbered(groups, 2, 3), numbered(4)
    by_column = np.moveaxis(numbered(N, 2), 0, 1)
    rows = make_rows((own, {"s": shared, "k": 7}, by_column), (0, None, 1), N, groups)
    for first, count in ((0, N), (0, 3), (5, 2), (N - 1, 1)):
        got, column = rows.of_members(jnp.int32(first), count)
        members = np.arange(first, first + count)
        np.testing.assert_array_equal(got, own[members // (N // groups)])
        np.testing.assert_array_equal(column, by_column[:, members].T)
    mine, extra, its_column = rows.merged([got[0], column[0]])
    assert extra["s"] is shared and extra["k"] == 7
    assert mine.shape == (2, 3) and its_column.shape == (2,)
    one, extra, column = rows.abstract()
    assert (one.shape, extra["s"].shape, extra["k"], column.shape) == ((2, 3), (4,), 7, (2,))


def test_a_shared_argument_can_be_put_in_front():
    rows = make_rows((A, C), (0, None), N, 1).after({"shared": C, "flag": True})
    assert rows.axes == (None, 0, None)
    front, own, _ = rows.merged([x[0] for x in rows.of_members(3, 1)])
    assert front["shared"] is C and front["flag"] is True
    np.testing.assert_array_equal(own, A[3])


@pytest.mark.parametrize(
    ("args", "in_axes", "text"),
    [
        ((A, B), (0,), r"got in_axes=\(0,\) for 2 argument\(s\).*one entry per argument"),
        ((A,), {"x": 0}, r"got in_axes=\{'x': 0\} for 1 argument"),
        ((A,), "0", r"got in_axes='0' for 1 argument"),
        ((A,), (2,), r"in_axes names axis 2, but the argument has shape \(12, 2\)"),
        ((A,), (-3,), "in_axes names axis -3"),
        ((np.float32(1),), (0,), r"in_axes names axis 0, but the argument has shape \(\)"),
        ((C,), (0,), r"got 5 rows along axis 0 .*one row per member \(12\) is required. Use in_axes=None"),
        (({"a": A},), ({"b": 0},), "is not a prefix of its argument"),
        (({"a": A, "b": A},), ({"a": 0},), "is not a prefix of its argument"),
        ((A,), ([0],), "is not a prefix of its argument"),
    ],
)
def test_what_does_not_fit(args, in_axes, text):
    with pytest.raises(ValueError, match=text):
        axes(args, in_axes)


def test_the_number_of_groups_is_part_of_the_message():
    with pytest.raises(ValueError, match=r"got 5 rows .*one row per member \(12\), or one per group \(4\) is required"):
        axes((C,), 0, groups=4)
    assert axes((numbered(4),), 0, groups=4) == (0,)


def total(p, x):
    return p["w"].sum() + x.sum()


def test_in_axes_are_not_confused_between_calls():
    """Minus one is another axis in two dimensions than in three: what was compiled for the one must not serve."""
    strategy = es(4)
    members = strategy.ask(strategy.init({"w": jnp.zeros(2)}, KEY))
    flat, deep = numbered(3, 4), numbered(4, 4, 4)
    for in_axes, x in [((-1,), flat), ((1,), deep), ((-1,), deep), ((0,), deep)]:
        got = members.apply(total, x, in_axes=in_axes) - members.apply(total, 0 * x[0])
        np.testing.assert_allclose(got, np.moveaxis(x, in_axes[0], 0).reshape(4, -1).sum(1), rtol=1e-6)


@pytest.mark.parametrize("in_axes", [(0, {"s": None, "t": 1}), None])
def test_value_and_grad_gives_each_member_its_rows(in_axes):
    """A loss that is the row itself: its mean over members is the mean of the rows."""
    x, more = numbered(4), {"s": np.float32(2.0), "t": numbered(3, 4)}

    def loss(p, x, more, *, bonus):
        return jnp.sum(p) * 0 + jnp.sum(x) * more["s"] + jnp.sum(more["t"]) + bonus

    f = eggroll.value_and_grad(loss, population=4, sigma=0.1, in_axes=in_axes)
    value, _ = f(jnp.zeros(3), x, more, key=KEY, bonus=jnp.float32(5.0))
    share = 4 if in_axes else 1
    assert float(value) == (x.sum() * 2.0 + more["t"].sum()) / share + 5.0
    with pytest.raises(ValueError, match=r"for 1 argument\(s\) after the parameters"):
        eggroll.value_and_grad(total, population=4, sigma=0.1, in_axes=(0, 0))({"w": jnp.zeros(2)}, x, key=KEY)
