"""Values put into larger arrays, masked, summed up, transformed; weights of rows by group. Truth: the dense weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from eggroll.engine.factored import factored
from eggroll.engine.interpreter import DenseFallbackError
from tests.engine.truth import check, check_never_dense, integers, low_rank

W = low_rank(1, (6, 8), (0,), (1,), 2, scaled=True)
CONSTANT = low_rank(3, (6, 8), (0,), (), 2)  # along its columns
ROWS = np.array([4, 1, 4, 0, 2, 7])


def turned(n):
    return jnp.argmax(jnp.arange(n))  # known only when it runs


PLACED = {
    "pad": lambda w: jnp.pad(w, ((1, 2), (3, 0)), constant_values=2.0),
    "pad between and cut": lambda w: lax.pad(w, jnp.float32(1), ((-1, 2, 1), (0, -2, 2))),
    "tile": lambda w: jnp.tile(w, (2, 1, 3))[1],
    "a row set": lambda w: w.at[2].set(1.0),
    "a column set": lambda w: w.at[:, 3].set(1.0),
    "a block set": lambda w: w.at[1:3, 2:5].set(1.0),
    "rows set, one twice": lambda w: w.at[ROWS].set(3.0),
    "rows added to": lambda w: w.at[ROWS].add(3.0),
    "a row moved": lambda w: w.at[2].set(w[4]),
    "beyond the end": lambda w: w.at[jnp.array([1, 9])].set(w[:2]),
    "into rows": lambda w: jnp.ones((9, 8)).at[2:8].set(w),
    "into a block": lambda w: jnp.ones((9, 12)).at[2:8, 3:11].set(w),
    "into chosen rows": lambda w: jnp.ones((9, 8)).at[ROWS].set(w),
    "added to chosen rows": lambda w: jnp.ones((9, 8)).at[ROWS].add(w),
    "into chosen columns": lambda w: jnp.ones((6, 9)).at[:, np.arange(8)[::-1]].set(w),
    "into a stack": lambda w: jnp.ones((3, 6, 8)).at[1].set(w)[1],
    "a window of it": lambda w: lax.dynamic_update_slice(jnp.ones((9, 10)), w, (turned(3), 1)),
    "a window in it": lambda w: lax.dynamic_update_slice(w, jnp.ones((2, 3)), (turned(9), 1)),
    "whole rows in it": lambda w: lax.dynamic_update_slice(w, jnp.ones((2, 8)), (turned(9), 0)),
    "rows where": lambda w: jnp.where(jnp.arange(6)[:, None] > 2, w, 1.0),
    "columns where": lambda w: jnp.where(jnp.arange(8) > 2, w, -w),
    "one or the other": lambda w: jnp.where(turned(3) > 1, w, -w),
    "rows of a shared index": lambda w: jnp.take_along_axis(w, jnp.broadcast_to(ROWS[:, None] % 6, (6, 8)), 0),
    "columns of a shared index": lambda w: jnp.take_along_axis(w, jnp.broadcast_to(jnp.arange(3), (6, 3)), 1),
    "summed up": lambda w: jnp.cumsum(w, 0) + lax.cumsum(w, 1, reverse=True),
}
TRANSFORMED = {
    "fft": lambda w: jnp.fft.fft(w, axis=0),
    "ifft2": jnp.fft.ifft2,
    "rfft2": jnp.fft.rfft2,
    "there and back": lambda w: jnp.fft.irfft(jnp.fft.rfft(w, axis=1), axis=1),
    "parts": lambda w: lax.complex(w, 2 * w) * jnp.complex64(1 + 2j),
    "conjugate": lambda w: jnp.conj(w.astype(jnp.complex64) * 1j).imag,
    "real part of a complex product": lambda w: (jnp.fft.fft2(w) * 1j).real,
    "scaled by complex numbers": lambda w: w.astype(jnp.complex64) * jnp.exp(1j * jnp.arange(8).astype(jnp.complex64)),
    "divided by one": lambda w: (w.astype(jnp.complex64) / jnp.complex64(2j)).imag,
    "wider than complex": lambda w: jnp.fft.fft(w.astype(jnp.bfloat16).astype(jnp.float32)),
}


def products(uses):
    """Every use, times the same input."""

    def fun(w, x):
        outs = {}
        for name, use in uses.items():
            value = use(w)
            out = jnp.tensordot(value, x[: value.shape[-1]].astype(value.dtype), 1)
            outs[name] = (out.real, out.imag) if jnp.iscomplexobj(out) else out
        return outs

    return fun


@pytest.mark.parametrize(("uses", "tolerance"), [(PLACED, 0.0), (TRANSFORMED, 1e-5)], ids=["placed", "transformed"])
@pytest.mark.parametrize("w", [W, CONSTANT], ids=["matrix", "constant"])
def test_nothing_is_made_dense_and_the_result_is_that_of_dense_weights(uses, tolerance, w):
    x = integers(5, (24, 2))
    check(products(uses), w, x, tolerance=tolerance)
    if w is W:  # what is looked up is held for an activation, and made dense where it is
        check_never_dense(products({name: use for name, use in uses.items() if "shared" not in name}), w, x)


STACK = low_rank(1, (3, 4, 5), (0, 1), (0, 2), 2, scaled=True)
SHARED_BY_GROUPS = low_rank(1, (3, 4, 5), (1,), (2,), 2)
ROUTER = low_rank(4, (4, 3), (0,), (1,), path="router")


def routed(params, x):
    weight, router = params
    expert = jnp.argmax(x @ router, -1)
    order = jnp.argsort(expert)
    return lax.ragged_dot(x[order], weight, jnp.bincount(expert, length=3))[jnp.argsort(order)]


def test_rows_by_group():
    """Each member routes its own rows; the weights of groups that are frozen, factored, or dense."""
    x = integers(3, (7, 4))
    check(routed, (STACK, ROUTER), x)
    check(routed, (SHARED_BY_GROUPS, ROUTER), x)
    check(routed, (STACK.base, ROUTER), x)
    check(lambda w, x: lax.ragged_dot(x, w, jnp.array([2, 0, 3])), STACK, x)  # the last rows belong to no group
    few_rows = lambda p, x: lax.ragged_dot(x, p[0], jnp.argsort(x[0] @ p[1]) + 1)  # noqa: E731
    check(few_rows, (STACK, ROUTER), x[:3, :4])
    check(lambda p, x: routed((jnp.sin(p[0]), p[1]), x), (STACK, ROUTER), x, fallback="allow", tolerance=1e-5)
    check_never_dense(lambda w, x: routed((w, ROUTER.base), x), STACK, integers(3, (2, 4)))
    square, back, sizes = integers(5, (3, 4, 4)), integers(6, (3, 4)), jnp.array([2, 0, 5])
    step = lambda y, _: (lax.ragged_dot(y, square, sizes), None)  # noqa: E731
    check(lambda w, x: lax.scan(step, x @ w @ back, length=2)[0], ROUTER, x)  # a loop with nothing perturbed inside


def test_two_axes_of_members():
    """As pairs and their two signs are."""
    x, weight = integers(1, (2, 3, 7, 4)), STACK.base
    sizes = integers(2, (2, 3, 3), jnp.int32, 1) + 1
    fun = lambda x, sizes: factored(lambda x, w, s: lax.ragged_dot(x, w, s))(x, weight, sizes)  # noqa: E731
    both = jax.jit(jax.vmap(jax.vmap(fun)))(x, sizes)
    ends = np.cumsum(sizes, -1)
    for at in np.ndindex(2, 3):
        group = np.searchsorted(ends[at], np.arange(7), side="right")
        want = [x[at][i] @ weight[g] if g < 3 else np.zeros(5) for i, g in enumerate(group)]
        np.testing.assert_array_equal(both[at], np.stack(want))


DENSE = {
    "triangle": jnp.tril,
    "products": lambda w: jnp.cumprod(w, 0),
    "logarithms": lambda w: lax.cumlogsumexp(w, 0),
    "an index for each": lambda w: jnp.take_along_axis(w, (jnp.arange(48).reshape(6, 8) * 5) % 6, 0),
    "a diagonal": lambda w: w.at[jnp.arange(6), jnp.arange(6)].set(1.0),
    "times": lambda w: w.at[jnp.array([0, 1])].mul(2.0),
    "sorted": lambda w: jnp.sort(w, 0),
    "two complex factors": lambda w: jnp.fft.irfft2(jnp.fft.fft2(w)),
}


@pytest.mark.first(4)
@pytest.mark.parametrize("name", DENSE)
def test_what_has_no_factored_form_is_said(name):
    fun = lambda w, x: products({name: DENSE[name]})(w, x)  # noqa: E731
    x = integers(5, (24, 2))
    with pytest.raises(DenseFallbackError):
        factored(fun, fallback="error")(low_rank(1, (6, 8), (0,), (1,), members=None), x)
    check(fun, W, x, fallback="allow", tolerance=1e-4)
