"""Calls are walked through: jit, remat, custom_jvp and custom_vjp."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from eggroll.engine.factored import factored
from eggroll.engine.interpreter import DenseFallbackWarning
from tests.engine.truth import check, check_never_dense, integers, low_rank

W = low_rank(1, (6, 8), (0,), (1,), 2)
ONE = low_rank(1, (6, 8), (0,), (1,), 2, members=None)
X = integers(2, (2, 6))


@jax.custom_jvp
def scaled_by_jvp(w, x):
    return 2 * (x @ w)


@scaled_by_jvp.defjvp
def _(primals, tangents):
    return scaled_by_jvp(*primals), 100 * (tangents[1] @ primals[0])


@jax.custom_vjp
def scaled_by_vjp(w, x):
    return 2 * (x @ w)


scaled_by_vjp.defvjp(lambda w, x: (2 * (x @ w), (w, x)), lambda saved, g: (saved[1].T @ g, g @ saved[0].T))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def activated(w, x, activation):
    return activation(x @ w)


activated.defvjp(
    lambda w, x, activation: (activation(x @ w), (w, x)),
    lambda activation, saved, g: (saved[1].T @ g, g @ saved[0].T),
)

CALLS = {
    "jit": jax.jit(lambda w, x: x @ w),
    "jit in jit": jax.jit(lambda w, x: jax.jit(jnp.matmul)(x, jax.jit(lambda w: -w)(w))),
    "inlined jit": jax.jit(lambda w, x: x @ w, inline=True),
    "remat": jax.checkpoint(lambda w, x: jnp.abs(x @ w)),
    "remat with a policy": jax.checkpoint(lambda w, x: x @ w, policy=jax.checkpoint_policies.dots_saveable),
    "remat in jit in remat": jax.checkpoint(jax.jit(jax.checkpoint(lambda w, x: x @ w.T.T))),
    "custom_jvp": scaled_by_jvp,
    "custom_vjp": scaled_by_vjp,
    "custom_vjp with options": lambda w, x: activated(w, x, jax.nn.relu),
    "custom_jvp in jit": jax.jit(scaled_by_jvp),
    "custom_vjp in remat": jax.checkpoint(scaled_by_vjp),
    "custom_jvp of the output": lambda w, x: jax.nn.relu(x @ w),
}
REFUSED = ["custom_jvp", "custom_vjp", "custom_vjp with options", "custom_jvp in jit", "custom_vjp in remat"]


@pytest.mark.parametrize("fun", CALLS.values(), ids=CALLS)
def test_values(fun):
    check(fun, W, X)
    check_never_dense(fun, W, X, strict=True)


@pytest.mark.parametrize("fun", CALLS.values(), ids=CALLS)
def test_a_weight_handed_through_a_call_stays_factored(fun):
    """A call that also returns the weight: what comes out is what went in."""

    def both(w, x):
        same = jax.checkpoint(lambda w, x: (w, fun(w, x)))(w, x)[0]
        return fun(jax.jit(lambda w: w)(same), x)

    check(both, W, X)
    check_never_dense(both, W, X, strict=True)


@jax.custom_vjp
def squared(w):
    return jnp.square(w)


squared.defvjp(lambda w: (w * w, w), lambda w, g: (2 * g * w,))


@pytest.mark.parametrize(
    ("fun", "primitive"),
    [(jax.jit(jnp.square), "square"), (jax.checkpoint(jnp.square), "square"), (squared, "square"),
     (jax.nn.relu, "max"), (jnp.tril, "select_n"), (jax.nn.gelu, "tanh")],
    ids=["jit", "remat", "custom_vjp", "custom_jvp", "tril", "gelu"],
)  # fmt: skip
def test_fallbacks_inside_a_call_are_reported(fun, primitive):
    """With the line of the user's call, where the equation itself lies in a library."""
    check(lambda w, x: x @ fun(w), W, X, fallback="allow", tolerance=1e-6)
    with pytest.warns(DenseFallbackWarning) as caught:
        factored(lambda w, x: x @ fun(w))(ONE, X)
    messages = [str(w.message) for w in caught]
    assert any(f"`{primitive}`" in m for m in messages)
    assert all("test_calls.py" in m for m in messages), messages


@pytest.mark.parametrize("name", REFUSED)
def test_derivatives_through_a_custom_rule_are_refused(name):
    """In the weight's base, in its factors, and in the other argument: the custom rule would be wrong for each."""
    fun = factored(lambda w, x: CALLS[name](w, x), fallback="error")
    for argnum in (0, 1):
        with pytest.raises(NotImplementedError, match=r"custom_[jv][jv]p_call.*test_calls.py.*\['w'\].*materialize"):
            jax.grad(lambda w, x: fun(w, x).sum(), argnum)(ONE, X)
        with pytest.raises(NotImplementedError, match="custom_"):
            jax.jvp(partial(fun, ONE), (X,), (X,))


def test_a_custom_rule_that_no_perturbed_value_enters_is_used():
    grad = jax.grad(lambda x: factored(lambda w, x: (scaled_by_jvp(jnp.eye(6), x) @ w).sum())(ONE, x))(X)
    np.testing.assert_array_equal(grad, 100 * jnp.ones((2, 8)) @ ONE.dense().T)


def model(w, x):
    """Products on both sides, a scan with a stack of layers in it, remat and activations."""

    def layer(h, scale):
        h = jnp.tanh(h @ w) @ (w.T * scale)
        return h, h.sum()

    h, sums = lax.scan(jax.checkpoint(layer), x, jnp.array([0.3, 0.2, 0.1]))
    return jax.nn.silu(h @ w).sum() + jnp.square(sums).sum()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        pytest.param(jax.jit, marks=pytest.mark.slow),
        jax.checkpoint,
        pytest.param(
            lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.nothing_saveable), marks=pytest.mark.slow
        ),
        lambda f: lambda w, x: lax.cond(x[0, 0] < 9, f, lambda w, x: 0.0, w, x),
    ],
    ids=["plain", "jit", "remat", "policy", "cond"],
)
def test_gradients(wrap):
    """In base, factors and input, through the whole network: those of the network on the dense weight."""
    w = jax.tree.map(lambda a: a / 8, ONE)
    fun = wrap(model)

    def dense_loss(w, x):
        return fun(w.base + w.left @ w.right.T, x)

    got = jax.jit(jax.value_and_grad(factored(fun, fallback="error"), (0, 1)))(w, X)
    want = jax.jit(jax.value_and_grad(dense_loss, (0, 1)))(w, X)
    for g, t in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, t, rtol=1e-4, atol=1e-5 * np.max(np.abs(t)))


def test_gradients_of_a_lookup_and_of_a_stack():
    """Of an embedding, stacked layers and a tied output."""
    params = {
        "embed": low_rank(1, (9, 4), (0,), (1,), 2, members=None),
        "layers": low_rank(2, (3, 4, 4), (0, 1), (0, 2), 2, members=None),
    }
    params = jax.tree.map(lambda a: a / 8, params)

    def fun(p, ids):
        h = lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), p["embed"][ids], p["layers"])[0]
        return jax.nn.log_softmax(h @ p["embed"].T)[:, 1].sum()

    def dense_loss(p, ids):
        dense = {
            "embed": p["embed"].base + p["embed"].left @ p["embed"].right.T,
            "layers": p["layers"].base + p["layers"].left @ p["layers"].right.swapaxes(1, 2),
        }
        return fun(dense, ids)

    ids = jnp.array([1, 3, 3, 8])
    got = jax.jit(jax.grad(factored(fun, fallback="error")))(params, ids)
    want = jax.jit(jax.grad(dense_loss))(params, ids)
    for g, t in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, t, rtol=1e-4, atol=1e-5 * np.max(np.abs(t)))


def test_rematerialisation_is_kept():
    """The policy decides what is saved between forward and backward pass, as without factors."""

    def saved(policy):
        fun = jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w)), policy=policy)
        _, pullback = jax.vjp(factored(fun), ONE, X)
        return sorted(a.shape for a in jax.tree.leaves(pullback) if a.shape == (2, 8))

    nothing, everything = (
        saved(p) for p in (jax.checkpoint_policies.nothing_saveable, jax.checkpoint_policies.everything_saveable)
    )
    assert not nothing and len(everything) >= 2


def test_keyword_arguments_and_other_leaves():
    """Strings, numbers, None, booleans and callables reach the function as they are."""

    def fun(params, x, *, activation, options):
        assert options == {"name": "a", "twice": True, "power": 2, "nothing": None}
        y = activation(x @ params["w"])
        return {"y": y * options["power"], "same": params["other"], "none": None}

    options = {"name": "a", "twice": True, "power": 2, "nothing": None}
    params = {"w": ONE, "other": 3.0}
    got = factored(fun, fallback="error")(params, X, activation=jax.nn.relu, options=options)
    want = fun(params | {"w": ONE.dense()}, X, activation=jax.nn.relu, options=options)
    np.testing.assert_array_equal(got["y"], want["y"])
    assert float(got["same"]) == 3.0 and got["none"] is None


def test_a_loss_of_several_outputs_in_jit_of_vmap_of_grad():
    """Transformations nest in any order."""
    loss = factored(lambda w, x: jnp.square(x @ w).sum(), fallback="error")
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), ONE)
    got = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(many, X)
    for i in range(2):
        one = jax.tree.map(lambda a: a[i], many)  # noqa: B023
        want = jax.grad(lambda w: jnp.square(X @ (w.base + w.left @ w.right.T)).sum())(one)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jax.tree.map(lambda a: a[i], got), want)  # noqa: B023
