"""scan: perturbed constants, slices and carries."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.factored import factored
from eggroll.engine.interpreter import DenseFallbackError
from tests.engine.truth import check, check_never_dense, compressible, integers, low_rank, member_axes, ownerships

W = low_rank(1, (6, 6), (0,), (1,), 2)
X = integers(2, (2, 6), bound=2)


def shrink(x):
    """Keeps values small integers, so that many steps stay exact."""
    return jnp.clip(x, -3, 3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 2])
def test_a_constant_weight(reverse, unroll):
    """A recurrent network: one weight for all steps."""

    def fun(w, x):
        step = lambda h, row: (shrink(h @ w + row), h @ w)  # noqa: E731
        return lax.scan(step, jnp.zeros(6), x, reverse=reverse, unroll=unroll)

    x = integers(3, (5, 6))
    check(fun, W, x)
    check_never_dense(fun, W, x, strict=True)


STACKS = {
    "both": ((0, 1), (0, 2)),
    "left": ((0, 1), (2,)),
    "right": ((1,), (0, 2)),
    "neither": ((1,), (2,)),
    "both, swapped": ((0, 2), (0, 1)),
    "alone": ((0,), (1, 2)),
}


def layers(w, x, **options):
    return lax.scan(lambda h, layer: (shrink(h @ layer), h.sum()), x, w, **options)


@pytest.mark.parametrize(
    ("name", "options"), list(zip(STACKS, itertools.cycle([{}, {"reverse": True}, {"unroll": 2}]))), ids=str
)
def test_stacked_layers(name, options):
    """The scanned axis belongs to both factors, to one, or to none."""
    left, right = STACKS[name]
    w = low_rank(1, (3, 6, 6), left, right, 2)
    check(lambda w, x: layers(w, x, **options), w, X)
    if right != (1, 2):
        check_never_dense(lambda w, x: layers(w, x, **options), w, X, limit=6 * 6, strict=True)


def test_stacked_layers_of_several_parameters():
    params = {
        "w": low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2, path="w"),
        "v": low_rank(2, (3, 6, 6), (0, 2), (0, 1), 3, path="v"),
        "b": integers(3, (3, 6)),
        "shared": low_rank(4, (6, 6), (0,), (1,), 1, path="shared"),
    }

    def fun(params, x):
        shared = params.pop("shared")
        step = lambda h, p: (shrink(h @ p["w"] @ shared + shrink(h) @ p["v"].T + p["b"]), None)  # noqa: E731
        return lax.scan(step, x, params)[0]

    check(lambda p, x: fun(dict(p), x), params, X)
    check_never_dense(lambda p, x: fun(dict(p), x), params, X, limit=6 * 6, strict=True)


@given(st.data())
def test_scan_over_any_owner(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    w = low_rank(1, shape, *data.draw(ownerships(len(shape))), data.draw(st.integers(1, 3)))
    x = integers(2, shape[1:])
    reverse = data.draw(st.booleans())

    def fun(w, x):
        step = lambda c, s: (c + 1, jnp.tensordot(s, x, x.ndim) * c)  # noqa: E731
        return lax.scan(step, jnp.float32(0), w, reverse=reverse)

    check(fun, w, x)
    if compressible(w) and len(shape) == 3 and shape[1] > 1 < shape[2]:
        check_never_dense(fun, w, x, limit=max(w.base.size, 1))


def test_every_member_has_its_own_input():
    check(layers, low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2), integers(2, (3, 2, 6)), per_member=[0])


def test_carry_handed_on_unchanged():
    """What the body returns untouched becomes a constant of the loop, and comes out factored."""

    def fun(w, x):
        def step(carry, row):
            w, h = carry
            return (w, shrink(h @ w + row)), None

        (same, h), _ = lax.scan(step, (w, jnp.zeros(6)), x)
        return h @ same

    check(fun, W, X)
    check_never_dense(fun, W, X, strict=True)


def test_carries_that_change_places():
    """Each becomes the other, so neither is constant: dense, and right."""
    other = low_rank(5, (6, 6), (0,), (1,), 2, path="v")

    def fun(p, x):
        def step(carry, row):
            w, v, h = carry
            return (v, w, shrink(h @ w + row)), None

        return lax.scan(step, (*p, jnp.zeros(6)), x)[0]

    check(fun, [W, other], X, fallback="allow")
    with pytest.raises(DenseFallbackError, match="loop carry that the body changes"):
        check(fun, [W, other], X)


def test_a_carry_that_changes_falls_back():
    def fun(w, x):
        step = lambda c, row: (c * 0.5, row @ c)  # noqa: E731
        return lax.scan(step, w, x)

    check(fun, W, X, fallback="allow", tolerance=1e-6)
    with pytest.raises(DenseFallbackError, match=r"'w'.*`scan`.*loop carry that the body changes"):
        check(fun, W, X)


def test_only_the_carry_that_changes_falls_back():
    """One perturbed carry stays; one is replaced by the other, which makes it vary."""
    other = low_rank(5, (6, 6), (0,), (1,), 2, path="v")

    def fun(p, x):
        def step(carry, row):
            w, v, h = carry
            return (w, w, shrink(h @ w + row @ v)), None

        return lax.scan(step, (*p, jnp.zeros(6)), x)[0][2]

    check(fun, [W, other], X, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"'v'.*loop carry"):
        check(fun, [W, other], X)


def test_slices_handed_on_as_outputs():
    """The stack comes out of the loop factored: Flax's scan returns its parameters so."""
    w = low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2)

    def fun(w, x, reverse=False):
        h, same = lax.scan(lambda h, layer: (shrink(h @ layer), layer), x, w, reverse=reverse)
        return h @ same[0] @ same[2]

    for reverse in (False, True):
        check(lambda w, x, r=reverse: fun(w, x, r), w, X)
        check_never_dense(lambda w, x, r=reverse: fun(w, x, r), w, X, limit=6 * 6, strict=True)


def test_other_perturbed_outputs_fall_back():
    """A changed slice, and a constant, stacked beside a carry."""
    w = low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2)
    changed = lambda w, x: lax.scan(lambda h, layer: (shrink(h + 1), 2 * layer), x, w)  # noqa: E731
    constant = lambda w, x: lax.scan(lambda h, row: (shrink(h + 1), w[0]), x, jnp.arange(3.0))  # noqa: E731
    for fun in (changed, constant):
        check(fun, w, X, fallback="allow")
        with pytest.raises(DenseFallbackError, match="stacked output of a scan"):
            check(fun, w, X)


OF_ROWS = {
    "scaled": lambda w, x: x @ lax.map(lambda row: 2 * row, w),
    "by an array": lambda w, x: x @ lax.map(lambda pair: pair[0] * pair[1], (w, jnp.arange(8.0))),
    "multiplied": lambda w, x: x @ lax.map(lambda row: row @ jnp.eye(8)[::-1], w),
    "of columns, in blocks": lambda w, x: x @ lax.map(lambda c: 2 * c, w.T, batch_size=3).T,
    "number by number": lambda w, x: x @ lax.map(lambda row: lax.map(lambda number: 2 * number, row), w),
    "with an input": lambda w, x: lax.map(lambda column: x @ column, w.T).T,
}


@pytest.mark.parametrize("fun", OF_ROWS.values(), ids=OF_ROWS.keys())
def test_a_weight_made_row_by_row(fun):
    """`lax.map` makes a weight of a weight's rows, which stays factored."""
    w, x = low_rank(1, (8, 8), (0,), (1,), 2), integers(2, (2, 8), bound=2)
    check(fun, w, x)
    check_never_dense(fun, w, x)


def test_nested_scans():
    w = low_rank(1, (2, 3, 8, 8), (0, 1, 2), (0, 1, 3), 2)
    x = integers(2, (2, 8), bound=2)

    def fun(w, x):
        inner = lambda h, layer: (shrink(h @ layer), layer)  # noqa: E731

        def outer(h, stack):
            h, stack = lax.scan(inner, h, stack)
            return h, stack

        h, same = lax.scan(outer, x, w)
        return h @ same[1, 2]

    check(fun, w, x)
    check_never_dense(fun, w, x, limit=8 * 8, strict=True)


def test_scan_in_a_jitted_and_rematerialised_layer():
    w = low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2)

    def fun(w, x):
        layer = jax.checkpoint(jax.jit(lambda h, p: (shrink(h @ p), p)))
        h, same = lax.scan(layer, x, w)
        return h @ same[1]

    check(fun, w, X)
    check_never_dense(fun, w, X, limit=6 * 6, strict=True)


def test_length_zero():
    w = low_rank(1, (0, 6, 6), (0, 1), (0, 2), 2)
    check(layers, w, X)
    check(lambda w, x: lax.scan(lambda c, _: (c, c @ w), x, None, length=0), W, X)
    carried = lambda w, x: x @ lax.scan(lambda c, _: (c, None), w, None, length=0)[0]  # noqa: E731
    check(carried, W, X, fallback="allow")


def test_map():
    w = low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2)
    check(lambda w, x: lax.map(lambda layer: x @ layer, w), w, X)
    check(lambda w, x: lax.map(lambda row: row @ w, x), W, X)
    check(lambda w, x: lax.map(lambda row: row @ w, x, batch_size=2), W, integers(3, (5, 6)))


def test_members_share_the_stack():
    """Under vmap over members, the scan slices a base without an axis of members."""
    w = low_rank(1, (3, 6, 6), (0, 1), (0, 2), members=5)
    population = jax.vmap(factored(lambda w, x: layers(w, x)[0]), in_axes=(member_axes(w), None))
    (scan,) = [e for e in jax.make_jaxpr(population)(w, X).jaxpr.eqns if e.primitive.name == "scan"]
    assert (3, 6, 6) in [v.aval.shape for v in scan.invars]
    assert not [v for v in scan.invars if v.aval.size >= 5 * 3 * 6 * 6]
