"""Calls, loops and branches around each other, in any order."""

from __future__ import annotations

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.factored import factored
from tests.engine.truth import check, check_never_dense, compressible, dense, integers, jit, weights


def shrink(x):
    """Keeps values small integers, so that many steps stay exact."""
    return jnp.clip(x, -3, 3)


def with_own_jvp(step):
    call = jax.custom_jvp(step)
    call.defjvp(lambda primals, tangents: (call(*primals), tangents))
    return call


def with_own_vjp(step):
    call = jax.custom_vjp(step)
    call.defvjp(lambda *args: (step(*args), None), lambda _, g: g)
    return call


# Each takes a step `(w, h) -> (w, h)` that returns the weight as it is, and gives another such.
CALLS = {
    "jit": lambda step: jax.jit(step),
    "inlined jit": lambda step: jax.jit(step, inline=True),
    "remat": lambda step: jax.checkpoint(step),
    "policy": lambda step: jax.checkpoint(step, policy=jax.checkpoint_policies.dots_saveable),
}
CUSTOM = {"custom_jvp": with_own_jvp, "custom_vjp": with_own_vjp}
LOOPS = {
    "while": lambda step: (
        lambda w, h: lax.while_loop(lambda c: c[0] < h.shape[0], lambda c: (c[0] + 1, step(*c[1])), (0, (w, h)))[1]
    ),
    "scan": lambda step: lambda w, h: lax.scan(lambda c, _: (step(*c), None), (w, h), None, length=2)[0],
    "constant of a scan": lambda step: lambda w, h: (w, lax.fori_loop(0, 2, lambda i, h: step(w, h)[1], h)),
    "cond": lambda step: lambda w, h: lax.cond(h.sum() > 0, step, lambda w, h: (w, -h), w, h),
    "switch": lambda step: (
        lambda w, h: (
            w,
            lax.switch(h.shape[0], [lambda w, h: h, lambda w, h: step(w, h)[1], lambda w, h: h + 1], w, h),
        )
    ),
}
ALL = CALLS | CUSTOM | LOOPS


def wrapped(step, names):
    for name in names:
        step = ALL[name](step)
    return step


def orders(data, w):
    """A permutation, and how many of the permuted axes a product sums over."""
    return data.draw(st.permutations(range(w.base.ndim))), data.draw(st.integers(0, w.base.ndim))


@given(st.integers(3, 4).flatmap(lambda n: weights(2, 2, st.just(n))), st.data())
def test_any_nesting(w, data):
    """The weight goes in and comes out again; the innermost step multiplies by it."""
    names = data.draw(st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=3))
    transposed = data.draw(st.booleans())
    step = wrapped(lambda w, h: (w, shrink(h @ (w.T if transposed else w))), names)

    def fun(w, x):
        same, h = step(w, x)
        return h @ same

    x = integers(3, (2, w.shape[0]), bound=2)
    check(fun, w, x)
    # Inside another step a branch is chosen by each member's own values: jax.vmap then copies the operands of `cond`.
    if compressible(w) and ("cond" not in names or len(names) == 1):
        check_never_dense(fun, w, x, strict=True)


@pytest.mark.slow
@given(weights(max_ndim=3), st.data())
def test_a_weight_that_a_call_changes(w, data):
    """It comes out of nested calls factored: the product is taken outside."""
    names = data.draw(st.lists(st.sampled_from(sorted(CALLS | CUSTOM)), min_size=1, max_size=3))
    order, contracted = orders(data, w)
    change = wrapped(lambda w, s: (jnp.transpose(w, order) * -s, s), names)

    def fun(w, s, x):
        return jnp.tensordot(change(w, s)[0], x, contracted)

    shape = [w.shape[a] for a in order[len(order) - contracted :]]
    x = integers(3, (*shape, 2))
    check(fun, w, jnp.float32(2), x)
    if compressible(w):
        check_never_dense(fun, w, jnp.float32(2), x)


def loss_of(names, data, w):
    """The sum of a product in nested calls, and the input of the product."""
    order, contracted = orders(data, w)
    product = lambda w, x: (w, jnp.tensordot(jnp.transpose(w, order), x, contracted))  # noqa: E731
    x = integers(3, (*[w.shape[a] for a in order[len(order) - contracted :]], 2))
    fun = wrapped(product, names)
    return lambda w, x: (fun(w, x)[1] * 2).sum(), x


@given(weights(max_ndim=3, members=None), st.data())
def test_gradients_through_calls(w, data):
    """By the chain rule, from the gradient in the dense weight: `dL = s·dW·right`, `dR = s·dW·left`."""
    loss, x = loss_of(data.draw(st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=3)), data, w)
    got, got_x = jit(jax.grad(factored(loss, fallback="error"), (0, 1)))(w, x)
    want, want_x = jit(jax.grad(loss, (0, 1)))(jnp.asarray(dense(w), jnp.float32), x)
    letters = string.ascii_lowercase[: w.base.ndim]
    left, right = ("".join(letters[a] for a in axes) + "Z" for axes in (w.left_axes, w.right_axes))
    np.testing.assert_array_equal(got.base, want)
    scale = 1 if w.scale is None else np.asarray(w.scale)
    np.testing.assert_array_equal(got.left, scale * np.einsum(f"{letters},{right}->{left}", want, w.right))
    np.testing.assert_array_equal(got.right, scale * np.einsum(f"{letters},{left}->{right}", want, w.left))
    np.testing.assert_array_equal(got_x, want_x)


@given(weights(max_ndim=3, members=None), st.data())
def test_derivatives_through_a_custom_rule_are_refused(w, data):
    """Wherever it lies among other calls, in the weight and in the other argument, forwards and backwards."""
    names = data.draw(st.lists(st.sampled_from(sorted(CALLS)), max_size=2))
    custom = data.draw(st.sampled_from(sorted(CUSTOM)))
    names.insert(data.draw(st.integers(0, len(names))), custom)
    loss, x = loss_of(names, data, w)
    loss = factored(loss, fallback="error")
    with pytest.raises(NotImplementedError, match=rf"{custom}_call.*\['w'\]"):
        jax.grad(loss, data.draw(st.integers(0, 1)))(w, x)
    with pytest.raises(NotImplementedError, match=rf"{custom}_call.*\['w'\]"):
        jax.jvp(lambda x: loss(w, x), (x,), (x,))
