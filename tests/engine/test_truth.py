"""The helpers of these tests find what they look for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.engine.sizes import FACTOR, PLAIN, X, large_values
from tests.engine.truth import DISTINCT, check, check_never_dense, compressible, dense, low_rank, member

X_IN = jnp.ones((2, 6))


def test_dense_is_the_sum_written_out():
    w = low_rank(0, (2, 3, 4, 5), (0, 2), (1, 2), rank=2)
    got = dense(w)
    for m, i, j, k, n in np.ndindex(3, 2, 3, 4, 5):
        change = sum(w.left[m, i, k, r] * w.right[m, j, k, r] for r in range(2))
        assert got[m, i, j, k, n] == w.base[i, j, k, n] + change


def test_a_wrong_result_is_found():
    w = low_rank(0, (6, 8), (0,), (1,), rank=2)
    outcomes = iter([1.0, 2.0])  # traced once for the population, once for the members alone
    with pytest.raises(AssertionError):
        check(lambda w, x: (x @ w) * next(outcomes), w, X_IN)


def form(w: jax.Array) -> jax.Array:
    """Makes the weight dense in a way that no rule knows."""
    return lax.reduce_precision(w, 8, 23)


@pytest.mark.parametrize(
    "fun",
    [
        lambda w, x: x @ form(w),
        lambda w, x: jax.jit(lambda a, b: a @ form(b))(x, w),
        lambda w, x: jax.checkpoint(lambda a, b: a @ form(b))(x, w),
        lambda w, x: lax.scan(lambda c, row: (c, row @ form(w)), 0, x)[1],
        lambda w, x: lax.fori_loop(0, 2, lambda i, c: c + c @ form(w)[:, :6], x),
        lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ form(w), lambda: x @ w),
        lambda w, x: (x[:, :, None] * w).sum(1),
    ],
    ids=["flat", "jit", "remat", "scan", "while", "cond", "product"],
)
def test_dense_weights_are_found(fun):
    w = low_rank(0, (6, 8), (0,), (1,))
    population = jax.vmap(lambda base, left, right, x: fun(base + left @ right.T, x), in_axes=(None, 0, 0, None))
    jaxpr = jax.make_jaxpr(population)(w.base, jnp.ones((DISTINCT, 6, 1)), jnp.ones((DISTINCT, 8, 1)), X_IN)
    found = large_values(jaxpr, [PLAIN, FACTOR, FACTOR, X], DISTINCT * 48)
    assert any(X not in v.kinds for v in found)


def test_a_weight_hidden_by_a_rule_is_found(monkeypatch):
    from eggroll.engine.rules import RULES

    w = low_rank(0, (6, 8), (0,), (1,))
    check_never_dense(lambda w, x: x @ w, w, X_IN, strict=True)
    monkeypatch.setitem(RULES, "dot_general", lambda ctx, eqn, args: [args[0] @ args[1].dense()])
    with pytest.raises(AssertionError, match="as large as the dense weights"):
        check_never_dense(lambda w, x: x @ w, w, X_IN)


def test_large_activations_are_found_when_strict():
    w = low_rank(0, (6, 8), (0,), (1,))
    wide = jnp.ones((9, 6))
    check_never_dense(lambda w, x: x @ w, w, wide)
    with pytest.raises(AssertionError, match="as large as the dense weights"):
        check_never_dense(lambda w, x: x @ w, w, wide, strict=True)


def test_a_factor_as_large_as_its_weight_is_refused():
    w = low_rank(0, (6, 8), (0, 1), (1,))
    assert not compressible(w)
    with pytest.raises(AssertionError, match="a factor is as large"):
        check_never_dense(lambda w, x: x @ w, w, X_IN)


def test_member_picks_one():
    w = low_rank(0, (6, 8), (0,), (1,))
    tree = member({"w": w, "b": X_IN}, 2)
    np.testing.assert_array_equal(tree["w"], w.base + w.left[2] @ w.right[2].T)
    assert tree["b"] is X_IN
