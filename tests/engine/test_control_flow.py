"""while and cond; scan is in test_scan.py, loops of any form in test_any_loop.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.interpreter import DenseFallbackError
from eggroll.engine.lowrank import is_low_rank
from tests.engine.truth import check, check_never_dense, compressible, integers, low_rank, weights

W = low_rank(1, (6, 6), (0,), (1,), 2)
V = low_rank(5, (6, 6), (0,), (1,), 2, path="v")
X = integers(2, (2, 6), bound=2)


def shrink(x):
    """Keeps values small integers, so that many steps stay exact."""
    return jnp.clip(x, -3, 3)


def test_fori_loop():
    fun = lambda w, x: lax.fori_loop(0, 3, lambda i, h: shrink(h @ w), x)  # noqa: E731
    check(fun, W, X)
    check_never_dense(fun, W, X, strict=True)


def test_while_with_a_traced_bound():
    """Not a scan: the number of steps is not known while tracing. Members may stop at different steps."""

    def fun(w, n, x):
        more = lambda c: (c[0] < n) & (jnp.abs(c[1] @ w).sum() < 60)  # noqa: E731
        return lax.while_loop(more, lambda c: (c[0] + 1, shrink(c[1] @ w) + c[1]), (0, x))

    check(fun, W, jnp.int32(4), X)
    check_never_dense(fun, W, jnp.int32(4), X, strict=True)
    check(fun, W, jnp.array([0, 2, 4]), X, per_member=[0])


def test_layers_indexed_in_a_loop():
    w = low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2)
    fun = lambda w, n, x: lax.fori_loop(0, n, lambda i, h: shrink(h @ w[i]), x)  # noqa: E731
    check(fun, w, jnp.int32(3), X)
    check_never_dense(fun, w, jnp.int32(3), X, limit=6 * 6, strict=True)


def test_while_carry_handed_on_unchanged():
    def fun(w, n, x):
        def body(carry):
            i, w, h = carry
            return i + 1, w, shrink(h @ w)

        _, same, h = lax.while_loop(lambda c: c[0] < n, body, (0, w, x))
        return h @ same

    check(fun, W, jnp.int32(3), X)
    check_never_dense(fun, W, jnp.int32(3), X, strict=True)


def test_while_condition_reads_a_carry_handed_on():
    def fun(w, n, x):
        more = lambda c: (c[0] < n) & ((c[2] @ c[1]).sum() < 50)  # noqa: E731
        return lax.while_loop(more, lambda c: (c[0] + 1, c[1], shrink(c[2] @ c[1])), (0, w, x))[2]

    check(fun, W, jnp.int32(5), X)
    check_never_dense(fun, W, jnp.int32(5), X, strict=True)


def test_while_carries_that_change():
    """A changed one, two that change places, and one that is replaced by a perturbed one."""

    def doubled(p, n, x):
        return x @ lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, p[0]))[1]

    def swapped(p, n, x):
        _, w, v = lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[2], c[1]), (0, *p))
        return x @ w @ v

    def replaced(p, n, x):
        return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, p[0]), (0, jnp.zeros((6, 6))))[1] @ x.T

    for fun in (doubled, swapped, replaced):
        check(fun, [W, V], jnp.int32(3), X, fallback="allow")
        with pytest.raises(DenseFallbackError, match=r"`while`.*loop carry that the body changes"):
            check(fun, [W, V], jnp.int32(3), X)


def test_a_loop_in_a_loop():
    def fun(w, n, x):
        def inner(carry, row):
            w, h = carry
            return (w, shrink(h @ w + row)), None

        def outer(i, carry):
            return lax.scan(inner, carry, jnp.ones((2, 6)))[0]

        same, h = lax.fori_loop(0, n, outer, (w, x))
        return h @ same

    check(fun, W, jnp.int32(2), X)
    check_never_dense(fun, W, jnp.int32(2), X, strict=True)


@pytest.mark.parametrize("flag", [False, True])
def test_cond(flag):
    def fun(w, flag, x):
        return lax.cond(flag, lambda x: x @ w, lambda x: x - (x @ w.T), x)

    check(fun, W, jnp.asarray(flag), X)
    check_never_dense(fun, W, jnp.asarray(flag), X, strict=True)


def test_every_member_takes_its_own_branch():
    """Under vmap both branches are evaluated; neither makes a weight dense."""
    fun = lambda w, flag, x: lax.cond(flag, lambda x: x @ w, lambda x: x * 2, x)  # noqa: E731
    check(fun, W, jnp.array([True, False, True]), X, per_member=[0])


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 9])
def test_switch(index):
    branches = [lambda p, x: x @ p[0], lambda p, x: x @ p[1].T, lambda p, x: x + 1]
    check(lambda p, i, x: lax.switch(i, branches, p, x), [W, V], jnp.int32(index), X)


BRANCHES = [
    lambda p, q, x: x @ p,
    lambda p, q, x: x @ q.T - x,
    lambda p, q, x: x @ p.T @ q,
    lambda p, q, x: x * 2,
    lambda p, q, x: jax.jit(lambda x: x @ -p)(x),
]


@given(weights(2, 2, st.just(4)), st.data())
def test_any_branches(w, data):
    """One to four, any index, one for all members or each its own; weights as operands or closed over, dense or not."""
    other = data.draw(weights(2, 2, st.just(4), path="v"))
    pair = data.draw(st.permutations([w, data.draw(st.sampled_from([other, other.base]))]))
    branches = data.draw(st.lists(st.sampled_from(BRANCHES), min_size=1, max_size=4))
    closed = data.draw(st.booleans())
    per_member = data.draw(st.booleans())
    index = st.integers(-2, 5)
    index = np.array(data.draw(st.lists(index, min_size=3, max_size=3) if per_member else index), np.int32)

    def fun(pair, index, x):
        if closed:
            return lax.switch(index, [lambda x, b=b: b(*pair, x) for b in branches], x)
        return lax.switch(index, branches, *pair, x)

    x = integers(3, (2, 4), bound=2)
    check(fun, pair, jnp.asarray(index), x, per_member=[0] if per_member else [])
    if all(compressible(p) for p in pair if is_low_rank(p)):
        check_never_dense(fun, pair, jnp.int32(0), x, strict=True)


@given(weights(1, 3), st.integers(0, 2), st.data())
def test_weights_out_of_any_branches(w, index, data):
    """Factored alike by all branches, they come out factored, and the product is taken outside."""
    order = data.draw(st.permutations(range(w.base.ndim)))
    changes = [lambda w: w, lambda w: -w, lambda w: 2 * w, lambda w: w[::-1], lambda w: jnp.flip(w)]
    branches = data.draw(st.lists(st.sampled_from(changes), min_size=2, max_size=3))
    branches = [lambda w, b=b: jnp.transpose(b(w), order) for b in branches]
    fun = lambda w, i, x: jnp.tensordot(lax.switch(i, branches, w), x, x.ndim)  # noqa: E731
    x = integers(3, [w.shape[a] for a in order])
    check(fun, w, jnp.int32(index), x)
    if compressible(w):
        check_never_dense(fun, w, jnp.int32(index), x)


def test_a_branch_chosen_by_a_perturbed_value():
    """By a product with a weight, as in early exit; and by the parameter itself, which is made dense."""
    early = lambda w, x: lax.cond((x @ w).sum() > 0, lambda: x @ w, lambda: x)  # noqa: E731
    check(early, W, X)
    s = low_rank(3, (), (), (), 2)
    itself = lambda s, x: lax.cond(s > 0, lambda: x, lambda: -x)  # noqa: E731
    check(itself, s, X, fallback="allow")
    with pytest.raises(DenseFallbackError, match="`gt`"):
        check(itself, s, X)


def test_branches_that_return_weights_alike():
    """The weight comes out of the branches still factored."""
    for fun in (
        lambda w, flag, x: x @ lax.cond(flag, lambda w: w.T, lambda w: -w.T, w),
        lambda w, flag, x: x @ lax.cond(flag, lambda w: (w, 1.0), lambda w: (2 * w, 2.0), w)[0],
    ):
        for flag in (True, False):
            check(fun, W, jnp.asarray(flag), X)
        check_never_dense(fun, W, jnp.asarray(True), X, strict=True)


@pytest.mark.parametrize(
    "other",
    [
        low_rank(7, (6, 6), (1,), (0,), 2),
        low_rank(7, (6, 6), (0,), (1,), 3),
        low_rank(7, (6, 6), (0,), (1,), 2, path="v"),
        integers(7, (6, 6)),
    ],
    ids=["other owners", "other rank", "other parameter", "dense"],
)
def test_branches_that_return_weights_in_different_forms(other):
    fun = lambda p, flag, x: x @ lax.cond(flag, lambda p: p[0], lambda p: p[1], p)  # noqa: E731
    for flag in (True, False):
        check(fun, [W, other], jnp.asarray(flag), X, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"`cond`.*different forms"):
        check(fun, [W, other], jnp.asarray(True), X)


def test_select():
    """One weight or the other; a mask that mixes both sides falls back."""
    fun = lambda p, flag, x: x @ jnp.where(flag, p[0], p[1])  # noqa: E731
    check(fun, [W, V], jnp.asarray(True), X)
    mixed = jnp.arange(W.base.size).reshape(W.shape) % 3 > 0
    check(fun, [W, V], mixed, X, fallback="allow")
    with pytest.raises(DenseFallbackError, match="`select_n`"):
        check(fun, [W, V], mixed, X)


def test_cond_in_a_scan():
    """Layers of two kinds in one stack."""
    w = low_rank(1, (3, 6, 6), (0, 1), (0, 2), 2)

    def fun(w, x):
        def step(h, layer):
            kind, p = layer
            return shrink(lax.cond(kind, lambda h, p: h @ p, lambda h, p: h @ p.T + h, h, p)), None

        return lax.scan(step, x, (jnp.array([True, False, True]), w))[0]

    check(fun, w, X)
    check_never_dense(fun, w, X, limit=6 * 6, strict=True)


@pytest.mark.parametrize("position", [0, 1])
def test_branches_hand_on_the_weight(position):
    """What comes out is the weight itself, so that a loop around need not carry it."""
    hidden = jax.custom_jvp(lambda w, h: (w, shrink(h @ w)))  # JAX itself sees what plain branches hand on
    hidden.defjvp(lambda primals, tangents: (hidden(*primals), tangents))
    branches = [hidden, lambda w, h: (w, -h)]

    def fun(w, flag, x):
        def turn(c, _):
            return lax.cond(flag, branches[position], branches[1 - position], *c), None

        (same, h), _ = lax.scan(turn, (w, x), None, length=2)
        return h @ same

    check(fun, W, jnp.asarray(True), X)
    check_never_dense(fun, W, jnp.asarray(True), X, strict=True)


def test_associative_scan_and_vmap_inside():
    fun = lambda w, x: jax.vmap(lambda row: lax.fori_loop(0, 2, lambda i, h: shrink(h @ w), row))(x)  # noqa: E731
    check(fun, W, X)
    check(lambda w, x: lax.associative_scan(jnp.add, x @ w), W, X)
