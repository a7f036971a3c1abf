"""Products of perturbed values with each other, sums and squares of them: never dense, and equal to dense members."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from tests.engine.truth import check, check_never_dense, integers, low_rank

D = 16
W, V = (low_rank(i, (D, D), (0,), (1,), path=p) for i, p in ((1, "w"), (2, "v")))
A, B = low_rank(3, (D, 2), (0,), (1,), path="a"), low_rank(4, (2, D), (0,), (1,), path="b")
STACK = low_rank(5, (3, D, D), (0, 1), (0, 2))
C, X = integers(6, (D, D), bound=2), integers(7, (2, D), bound=2)


def norm(w, axis=None):
    return w / jnp.linalg.norm(w, axis=axis, keepdims=axis is not None)


def standardised(w, axis):
    return (w - w.mean(axis, keepdims=True)) * lax.rsqrt(w.var(axis, keepdims=True) + 1e-3)


def spectral(w, x):
    v = x[0] @ w
    u = w @ (v / jnp.linalg.norm(v))
    u = u / jnp.linalg.norm(u)
    return w / (u @ w @ (v / jnp.linalg.norm(v)))


def scanned(change):
    """`change` of every layer of a stack, inside a loop."""
    return lambda w, x: lax.scan(lambda h, layer: (jnp.tanh(h @ change(layer) / D), None), x, w)[0]


EXACT = {
    "before the input": (W, lambda w, x: x @ (C @ w)),
    "from both sides": (W, lambda w, x: x @ (C @ w @ C)),
    "transposed": (W, lambda w, x: (w @ C).T @ x.T),
    "merged": ((W, A, B), lambda p, x: x @ (p[0] + p[1] @ p[2])),
    "merged, scaled, transposed": ((W, A, B), lambda p, x: x @ (p[0] - 2.0 * p[1] @ p[2]).T),
    "gram": (W, lambda w, x: x @ (w.T @ w)),
    "chain": ((W, V), lambda p, x: x @ (p[0] @ p[1])),
    "of three": ((W, V), lambda p, x: jnp.einsum("bi,ij,jk->bk", x, p[0], p[1])),
    "linear layers": ((W, V), lambda p, x: x @ p[0] @ p[1]),
    "in a loop": (W, lambda w, x: lax.fori_loop(0, 2, lambda _, h: h @ (C @ w), x)),
    "as a constant of a scan": (W, lambda w, x: lax.scan(lambda h, _: (h @ w, h @ (w @ C)), x, None, length=2)),
    "checkpointed": (W, lambda w, x: jax.checkpoint(lambda m: jnp.abs(x @ m))(w @ C)),
    "chosen": (W, lambda w, x: lax.cond(x[0, 0] > 0, lambda m: x @ m, lambda m: x @ m.T, C @ w)),
    "of layers": (STACK, lambda w, x: jnp.einsum("bi,lij->lbj", x, jnp.einsum("ij,ljk->lik", C, w))),
    "batched": (STACK, lambda w, x: jnp.einsum("bi,lij->lbj", x, jnp.einsum("lji,ljk->lik", w, w))),
    "mapped": (STACK, lambda w, x: jax.vmap(lambda m: x @ (C @ m))(w)),
    "mapped inputs": (W, lambda w, x: jax.vmap(lambda row: row @ (C @ w))(x)),
    "a vector, then a bias": (W, lambda w, x: x @ w + w @ X[0]),
    "centred": (W, lambda w, x: x @ (w - jnp.mean(w, 0))),
    "centred rows": (W, lambda w, x: x @ (w - w.mean(1, keepdims=True))),
    "centred in all": (W, lambda w, x: x @ (w - w.mean())),
    "sums": (W, lambda w, x: (x @ w) * jnp.sum(w, 0) - jnp.sum(w)),
    "of squares": (W, lambda w, x: (x @ w, jnp.sum(w**2, 0), jnp.sum(w * w, 1), jnp.sum(jnp.square(w)))),
    "inner product": ((W, V), lambda p, x: (x @ p[0], jnp.sum(p[0] * p[1]))),
    "of a product": ((A, B), lambda p, x: jnp.sum((p[0] @ p[1]) ** 2, 0)),
}
ROUNDED = {
    "normalised": (W, lambda w, x: x @ norm(w)),
    "columns": (W, lambda w, x: x @ norm(w, 0)),
    "rows": (W, lambda w, x: x @ norm(w, 1)),
    "rows and columns": (W, lambda w, x: x @ (norm(w, 1) * jnp.sum(w, 0))),
    "transposed columns": (W, lambda w, x: x @ norm(w, 0).T),
    "gain": ((W, B), lambda p, x: x @ ((2 + jnp.tanh(x @ p[1].T)[0, 0]) * norm(p[0], 0))),
    "standardised": (W, lambda w, x: x @ standardised(w, 0)),
    "spectral": (W, lambda w, x: x @ spectral(w, x)),
    "merged and normalised": ((W, A, B), lambda p, x: x @ norm(p[0] + p[1] @ p[2], 0)),
    "gram of a normalised": (W, lambda w, x: x @ (norm(w).T @ w)),
    "layers": (STACK, scanned(lambda w: norm(w, 0))),
    "standardised layers": (STACK, scanned(lambda w: standardised(w, 0))),
    "gram of layers": (STACK, scanned(lambda w: w.T @ w / 99)),
    "all layers": (STACK, lambda w, x: jnp.einsum("bi,lij->lbj", x, norm(w, 1))),
    "split in heads": (W, lambda w, x: jnp.einsum("bi,ihd->bhd", x, norm(w, 0).reshape(D, 4, 4))),
    "looked up": (W, lambda w, x: x @ w + norm(w, 1)[jnp.array([1, 3])]),
    "checkpointed": (W, lambda w, x: jax.checkpoint(lambda w: x @ norm(w, 0))(w)),
    "scale chosen": (W, lambda w, x: x @ lax.cond(x[0, 0] > 0, lambda w: norm(w, 0), lambda w: norm(w, 0) / 2, w)),
}


@pytest.mark.parametrize(("params", "fun"), EXACT.values(), ids=EXACT)
def test_products_and_sums(params, fun):
    """Sums of small integers, so equal to the last bit; with second-order terms."""
    check(fun, params, X, tolerance=1e-6)
    check_never_dense(fun, params, X, limit=D * D)


@pytest.mark.parametrize(("params", "fun"), ROUNDED.values(), ids=ROUNDED)
def test_scales_of_their_own(params, fun):
    """Divided by its own norm, a weight is not the members' own: their numbers stay outside of it."""
    check(fun, params, X, tolerance=2e-6)
    check_never_dense(fun, params, X, limit=D * D)


def convolved(change):
    image = integers(8, (1, 4, 4, 6), bound=2)
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda k, x: lax.conv_general_dilated(image + x, change(k), (1, 1), "SAME", dimension_numbers=numbers)


def test_standardised_convolutions():
    kernel = low_rank(9, (3, 3, 6, 8), (0, 1, 2), (3,))
    for change in (lambda k: standardised(k, (0, 1, 2)), lambda k: k / jnp.sqrt(jnp.sum(k**2))):
        check(convolved(change), kernel, jnp.float32(1), tolerance=2e-6)
        check_never_dense(convolved(change), kernel, jnp.float32(1))


@st.composite
def pairs(draw):
    """Two weights of any ownership, and a product of them by any contraction, batch and order of axes."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    roles = draw(st.lists(st.sampled_from(["sum", "batch", "left", "right"]), min_size=len(sizes), max_size=len(sizes)))
    names = "abcd"[: len(sizes)]
    left, right = (
        "".join(draw(st.permutations([n for n, r in zip(names, roles, strict=True) if r in ("sum", "batch", side)])))
        for side in ("left", "right")
    )
    out = "".join(draw(st.permutations([n for n, r in zip(names, roles, strict=True) if r != "sum"])))
    shapes = [[sizes[names.index(n)] for n in side] for side in (left, right)]
    return f"{left},{right}->{out}", [draw(owned(tuple(s), i)) for i, s in enumerate(shapes)]


@st.composite
def owned(draw, shape, seed):
    sides = draw(st.lists(st.sampled_from("lrbn"), min_size=len(shape), max_size=len(shape)))
    left, right = (tuple(a for a, s in enumerate(sides) if s in own) for own in ("lb", "rb"))
    return low_rank(seed, shape, left, right, draw(st.integers(1, 3)), scaled=draw(st.booleans()))


@given(pairs())
def test_any_product_of_two(case):
    spec, params = case
    check(lambda p: jnp.einsum(spec, *p), list(params), fallback="allow", tolerance=1e-6)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4).flatmap(lambda s: owned(tuple(s), 1)), st.data())
def test_any_sum(w, data):
    axes = tuple(data.draw(st.sets(st.integers(0, len(w.shape) - 1))))
    check(lambda w: (w.sum(axes), (w * w).sum(axes)), w, fallback="allow", tolerance=1e-6)
