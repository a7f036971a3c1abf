"""Linear elementwise operations, each followed by a product, so that it is the factored form that is checked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.factored import factored
from eggroll.engine.interpreter import DenseFallbackError
from tests.engine.truth import (
    check,
    check_never_dense,
    compressible,
    dense,
    integers,
    jit,
    low_rank,
    ownerships,
    weights,
)

W = low_rank(1, (6, 8), (0,), (1,), 2)
X = integers(2, (2, 6))
# Powers of two, so that division is exact.
LEFT, RIGHT = (jnp.asarray(np.exp2(np.arange(*r, dtype=np.float32))) for r in ((-2, 4), (-4, 4)))


def verify(change, w=W, *args, x=X, never_dense=True, **options):
    """`x @ change(w, *args)` is right and never dense."""
    fun = lambda w, *args: args[-1] @ change(w, *args[:-1])  # noqa: E731
    check(fun, w, *args, x, **options)
    if never_dense:
        check_never_dense(fun, w, *args, x, strict=True)


CHANGES = {
    "negative": lambda w: -w,
    "times literal": lambda w: w * 2.0,
    "literal times": lambda w: 0.5 * w,
    "over literal": lambda w: w / 4.0,
    "float times": lambda w: jnp.float32(3) * w,
    "times ones": lambda w: w * jnp.full((1, 1), 2.0),
    "times broadcast literal": lambda w: w * jnp.broadcast_to(jnp.float32(2), (6, 8)),
    "stop_gradient": lambda w: lax.stop_gradient(w),
    "copy": lambda w: jnp.copy(w),
    "barrier": lambda w: lax.optimization_barrier(w),
    "positive": lambda w: +w,
    "same cast": lambda w: w.astype(jnp.float32),
    "twice": lambda w: w + w,
    "minus reversed": lambda w: w - w[::-1],
    "plus literal": lambda w: w + 1.0,
    "literal minus": lambda w: 1.0 - w,
    "times left column": lambda w: w * LEFT[:, None],
    "over left column": lambda w: w / LEFT[:, None],
    "times right row": lambda w: w * RIGHT,
    "right row times": lambda w: RIGHT[None, :] * w,
    "over right row": lambda w: w / RIGHT,
    "times broadcast row": lambda w: w * jnp.broadcast_to(RIGHT, (6, 8)),
    "over broadcast column": lambda w: w / jnp.broadcast_to(LEFT[:, None], (6, 8)),
    "sharded": lambda w: lax.with_sharding_constraint(w, jax.sharding.SingleDeviceSharding(jax.devices()[0])),
    "chain": lambda w: (w * RIGHT) / LEFT[:, None] - w,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_operation(change):
    verify(change)


def test_traced_scales():
    verify(lambda w, s: w * s, W, jnp.float32(3))
    verify(lambda w, s: w / s, W, jnp.float32(4))
    verify(lambda w, s: s * w, W, jnp.ones((1, 1)) * 3)
    verify(lambda w, s: s * w, W, RIGHT)
    verify(lambda w, s: w / s[:, None], W, LEFT)


def test_every_member_has_its_own_scale():
    fun = lambda w, s, x: x @ (w * s)  # noqa: E731
    check(fun, W, jnp.arange(3.0), X, per_member=[0])
    check(fun, W, integers(3, (3, 8)), X, per_member=[0])


@given(weights(min_ndim=1, max_ndim=3), st.data())
def test_products_with_arrays_that_broadcast(w, data):
    """Any array of sizes 1 and n, also of more axes or larger along axes of size one: right, perhaps by fallback."""
    shape = [data.draw(st.sampled_from([1, n])) for n in w.shape]
    shape = [data.draw(st.integers(1, 2)) if n == 1 else m for n, m in zip(w.shape, shape, strict=True)]
    grown = [data.draw(st.integers(n, 2)) if n == 1 else n for n in np.maximum(shape, w.shape).tolist()]
    spread = data.draw(st.sampled_from(["as it is", "broadcast", "one more axis"]))
    full = tuple(grown) if spread == "broadcast" else jnp.broadcast_shapes(tuple(shape), w.shape)
    scale = jnp.asarray(2.0 ** np.random.default_rng(1).integers(-2, 3, shape).astype(np.float32))
    operation = data.draw(st.sampled_from([jnp.multiply, lambda s, w: jnp.divide(w, s)]))

    def fun(w, scale, x):
        if spread == "broadcast":
            scale = jnp.broadcast_to(scale, full)
        if spread == "one more axis":
            scale = scale[None]
        y = operation(scale, w)
        return jnp.tensordot(y.reshape(full), x, len(full))

    # The reshape and the product see a wrong shape or a wrong owner of an axis.
    check(fun, w, scale, integers(3, full), fallback="allow")


@given(weights(max_ndim=3), st.data())
def test_scales_along_the_axes_of_one_factor(w, data):
    """A scalar, or an array that varies along axes of one factor; shared, or each member's own."""
    own = data.draw(st.sampled_from([w.left_axes, w.right_axes]))
    varying = data.draw(st.sets(st.sampled_from(own))) if own else ()
    shape = [n if a in varying else 1 for a, n in enumerate(w.shape)]
    shape = () if not varying and data.draw(st.booleans()) else shape
    per_member = data.draw(st.booleans())
    powers = np.random.default_rng(1).integers(-2, 3, (3, *shape) if per_member else shape)
    scale = jnp.asarray(np.exp2(powers).astype(np.float32))
    scaled = data.draw(st.sampled_from([lambda w, s: w * s, lambda w, s: s * w, lambda w, s: w / s]))
    fun = lambda w, s, x: jnp.tensordot(scaled(w, s), x, x.ndim)  # noqa: E731
    check(fun, w, scale, integers(3, w.shape), per_member=[0] if per_member else [])
    if compressible(w) and not per_member:
        check_never_dense(fun, w, scale, integers(3, w.shape))


def test_an_array_that_varies_along_both_falls_back():
    mask = jnp.asarray(np.tril(np.ones((6, 8), np.float32)))
    fun = lambda w, x: x @ (w * mask)  # noqa: E731
    check(fun, W, X, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"`mul`.*axes of both factors"):
        check(fun, W, X)


def test_a_product_of_another_dtype_falls_back():
    """`lax.mul` can widen as it multiplies."""
    w = low_rank(1, (6, 8), (0,), (1,), 2, dtype=jnp.bfloat16)
    fun = lambda w, x: x @ lax.mul(w, jnp.bfloat16(2), out_dtype=jnp.float32)  # noqa: E731
    check(fun, w, X, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"`mul`.*out_dtype"):
        check(fun, w, X)


def test_learned_scales():
    """A perturbed scale is made dense, which is small; the weight stays factored."""
    s = low_rank(3, (8,), (), (0,), 2, path="s")
    fun = lambda p, x: x @ (p[0] * p[1])  # noqa: E731
    check(fun, [W, s], X, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"'s'.*a perturbed scale"):
        check(fun, [W, s], X)
    check(lambda p, x: x @ (p[1] * p[0]), [W, s], X, fallback="allow")
    check(lambda p, x: x @ (p[0] / jnp.exp2(p[1] * 0.25)), [W, s], X, fallback="allow", tolerance=1e-6)
    check(lambda p, x: x @ p[0] * p[1], [W, s], X, fallback="allow")


NONLINEAR = {
    "squared": lambda b: b * b,
    "over itself": lambda b: (b + 100) / (b + 100),
    "times its negative": lambda b: b * -b,
    "times its reverse": lambda b: b * b[::-1],
    "reciprocal": lambda b: 1 / (b + 100),
    "power": lambda b: b**2,
    "square": lambda b: jnp.square(b),
}


@pytest.mark.parametrize("fun", NONLINEAR.values(), ids=NONLINEAR)
@pytest.mark.parametrize(("left", "right"), [((0,), ()), ((), (0,)), ((0,), (0,)), ((), ())])
def test_nonlinear_uses(fun, left, right):
    b = low_rank(4, (6,), left, right, 2)
    check(fun, b, fallback="allow", tolerance=1e-6)


def test_a_product_with_itself():
    check(lambda w, x: x @ (w * w), W, X, fallback="allow")
    check(lambda w, x: x @ (w / (w + 100)), W, X, fallback="allow", tolerance=1e-6)


@st.composite
def addends(draw):
    """A perturbed value, and another, perturbed or dense, with fewer axes or with some of size one."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    other = [draw(st.sampled_from([1, n])) for n in shape] if draw(st.booleans()) else shape
    other = other[draw(st.integers(0, len(other))) :]
    first = low_rank(1, shape, *draw(ownerships(len(shape))), draw(st.integers(1, 3)))
    second = low_rank(2, other, *draw(ownerships(len(other))), draw(st.integers(1, 3)))
    return first, draw(st.sampled_from([second, second.base]))


@given(addends(), st.sampled_from([1, -1]), st.booleans())
def test_sums(pair, sign, swap):
    def fun(p, x):
        a, b = reversed(p) if swap else p
        return jnp.tensordot(a + b if sign == 1 else a - b, x, x.ndim)

    check(fun, pair, integers(3, pair[0].shape))


@pytest.mark.parametrize("fun", [lambda b, h: h + b, lambda b, h: b - h], ids=["plus", "minus"])
def test_a_bias_is_made_dense_while_it_is_small(fun):
    """Added to a plain array: it would otherwise become as large as that array."""
    b = low_rank(2, (8,), (), (0,), 1, path="b")
    check(fun, b, integers(1, (2, 8)), fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"'b'.*implicit broadcast\): 9.6e-05 MB"):
        check(fun, b, integers(1, (2, 8)))


def test_sums_are_never_dense():
    same, swapped = low_rank(3, (6, 8), (0,), (1,), 1, path="a"), low_rank(4, (6, 8), (1,), (0,), 3, path="b")
    for other in (same, swapped, same.base):
        for change in (lambda p: p[0] + p[1], lambda p: p[0] - p[1], lambda p: p[1] - p[0]):
            verify(change, [W, other])


def test_low_rank_adaptation():
    """`W + A·B` where all three are perturbed; the product of A and B is made dense, W stays apart."""
    params = [W, low_rank(3, (6, 2), (0,), (1,), 1, path="A"), low_rank(4, (2, 8), (0,), (1,), 1, path="B")]
    check(lambda p, x: x @ (p[0] + p[1] @ p[2]), params, X, fallback="allow")
    check(lambda p, x: x @ p[0] + x @ p[1] @ p[2], params, X)


FLOATS = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])


@given(st.data())
def test_casts_of_small_integers_are_exact(data):
    """Through any floating-point types, for weights and factors that all of them can hold."""
    w = data.draw(weights(max_ndim=3, dtype=data.draw(FLOATS)))
    dtypes = data.draw(st.lists(FLOATS, min_size=1, max_size=3))

    def fun(w, x):
        for dtype in dtypes:
            w = w.astype(dtype)
        return jnp.tensordot(w, x, x.ndim, preferred_element_type=jnp.float32)

    x = integers(3, w.shape, dtypes[-1])
    check(fun, w, x)
    if compressible(w):
        check_never_dense(fun, w, x)


@pytest.mark.parametrize(("start", "end"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")])
def test_casts(start, end):
    """A cast of the factors rounds each of them; the dense weight would be rounded once."""
    w = low_rank(1, (6, 8), (0,), (1,), 2, dtype=start, members=None)
    w = jax.tree.map(lambda a: (a.astype(jnp.float32) / 3).astype(start), w)
    x = X.astype(end)
    fun = lambda w, x: jnp.matmul(x, w.astype(end), preferred_element_type=jnp.float32)  # noqa: E731
    got = factored(fun, fallback="error")(w, x)
    truth = np.asarray(X, np.float64) @ dense(w)
    magnitude = np.abs(np.asarray(X, np.float64)) @ dense(jax.tree.map(jnp.abs, w))
    # Base, left and right are each rounded by half a unit in the last place; 6 terms are summed in float32.
    unit = float(jnp.finfo(end).eps) if end == "bfloat16" else 0.0
    assert np.all(np.abs(np.asarray(got, np.float64) - truth) <= (1.5 * unit + 8e-7) * magnitude)


def test_mixed_precision_is_never_dense():
    w = low_rank(1, (6, 8), (0,), (1,), 2)
    fun = lambda w, x: (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32)  # noqa: E731
    check(fun, w, X, tolerance=2**-7)
    check_never_dense(fun, w, X, strict=True)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_other_casts_fall_back(dtype):
    check(lambda w: w.astype(dtype), W, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"`convert_element_type`.*not linear"):
        check(lambda w: w.astype(dtype), W)


def test_strict_promotion_of_narrow_weights():
    """Literals and traced scales of the weight's own dtype do not widen it."""
    w = low_rank(1, (6, 8), (0,), (1,), 2, dtype=jnp.bfloat16)
    x = X.astype(jnp.bfloat16)
    fun = lambda w, s, x: jnp.matmul(x, w * 0.5 * s, preferred_element_type=jnp.float32)  # noqa: E731
    check(fun, w, jnp.bfloat16(2), x)
    check(fun, w, jnp.exp2(jnp.arange(8.0)).astype(jnp.bfloat16), x)


def test_stop_gradient_stops_base_and_factors():
    w = low_rank(1, (6, 8), (0,), (1,), 2, members=None)
    stopped, passed = (
        jit(jax.grad(lambda w, f=f: factored(f, fallback="error")(w, X).sum()))(w)
        for f in (lambda w, x: x @ lax.stop_gradient(w), lambda w, x: x @ w)
    )
    assert not any(np.any(g) for g in jax.tree.leaves(stopped))
    assert all(np.any(g) for g in jax.tree.leaves(passed))
