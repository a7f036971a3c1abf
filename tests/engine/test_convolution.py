"""conv_general_dilated of perturbed kernels."""

from __future__ import annotations

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from eggroll.engine.factored import factored
from eggroll.engine.interpreter import DenseFallbackError
from tests.engine.truth import check, check_never_dense, dense, integers, low_rank

NHWC = ("NHWC", "HWIO", "NHWC")


def kernel(seed, shape, rank=1, out_axis=-1, swap=False, **options):
    """Input side and output features apart, as discovery plans it; `swap` gives the output features to left."""
    out = out_axis % len(shape)
    inner = tuple(a for a in range(len(shape)) if a != out)
    sides = ((out,), inner) if swap else (inner, (out,))
    return low_rank(seed, shape, *sides, rank, **options)


def conv(strides=(1, 1), padding="SAME", numbers=NHWC, **options):
    return lambda k, x: lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=numbers, **options)


@st.composite
def convolutions(draw):
    """1 to 3 spatial dimensions, any layouts, strides, padding, dilations, groups, owners, ranks; which side mixes."""
    n = draw(st.integers(1, 3))
    spatial = "DHW"[-n:]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    letters = {s: draw(st.integers(1, 3)) for s in spatial}
    sizes = letters | {"I": draw(st.integers(1, 2)), "O": groups * draw(st.integers(1, 2))}
    image = {s: draw(st.integers(2, 5)) for s in spatial} | {"N": draw(st.integers(1, 2)), "C": groups * sizes["I"]}
    lhs, rhs, out = ("".join(draw(st.permutations(list(spatial + extra)))) for extra in ("NC", "IO", "NC"))
    explicit = st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=n, max_size=n)
    each = st.lists(st.integers(1, 2), min_size=n, max_size=n)
    lhs_dilation = draw(st.one_of(st.none(), each))
    options = {
        "strides": draw(each),
        "padding": draw(explicit if lhs_dilation else st.one_of(st.sampled_from(["SAME", "VALID"]), explicit)),
        "numbers": (lhs, rhs, out),
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": draw(st.one_of(st.none(), each)),
        "feature_group_count": groups,
    }
    shape = [sizes[c] for c in rhs]
    mixed = rhs.index(draw(st.sampled_from("OOI")))
    w = kernel(draw(st.integers(0, 99)), shape, draw(st.integers(1, 5)), mixed, draw(st.booleans()))
    return conv(**options), w, integers(3, [image[c] for c in lhs])


@given(convolutions())
def test_any_convolution(case):
    fun, w, x = case
    check(fun, w, x)


IMAGE = (2, 4, 4, 3)
CASES = {
    "same": (conv(), (3, 3, 3, 8), IMAGE),
    "valid": (conv(padding="VALID"), (3, 3, 3, 8), IMAGE),
    "strided": (conv((2, 1)), (3, 3, 3, 8), IMAGE),
    "explicit padding": (conv(padding=((1, 2), (0, 1))), (3, 3, 3, 8), IMAGE),
    "dilated kernel": (conv(rhs_dilation=(2, 2)), (3, 3, 3, 8), IMAGE),
    "dilated input": (conv(padding=((2, 2), (2, 2)), lhs_dilation=(2, 2)), (3, 3, 3, 8), (1, 2, 2, 3)),
    "transposed": (lambda k, x: lax.conv_transpose(x, k, (2, 2), "SAME"), (3, 3, 3, 8), (1, 2, 2, 3)),
    "grouped": (conv(feature_group_count=2), (3, 3, 3, 8), (1, 2, 2, 6)),
    "depthwise with a multiplier": (conv(feature_group_count=3), (4, 4, 1, 6), (1, 2, 2, 3)),
    "one by one": (conv(), (1, 1, 8, 8), (1, 2, 2, 8)),
}


@pytest.mark.parametrize(("fun", "shape", "image"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("swap", [False, True], ids=["in-out", "out-in"])
def test_a_kernel_is_never_dense(fun, shape, image, swap):
    w = kernel(1, shape, 2, swap=swap)
    x = integers(2, image)
    check(fun, w, x)
    check_never_dense(fun, w, x)


def test_depthwise():
    """One output for each group: the thin kernel is as large as the weight, so nothing is saved, but it is right."""
    check(conv(feature_group_count=6), kernel(1, (4, 4, 1, 6), 2), integers(2, (2, 4, 4, 6)))


def test_activations_are_those_of_the_output():
    """The thin convolution has `rank` channels, so nothing but the result has the output's size."""
    w = kernel(1, (3, 3, 3, 8))
    fun = lambda k, x: conv()(k, x).sum()  # noqa: E731
    check_never_dense(fun, w, integers(2, (1, 5, 5, 3)), limit=5 * 5 * 8 + 1, strict=True)


@pytest.mark.parametrize("sides", [(3, 2), (2, 3)], ids=["own", "tied"])
def test_transposed_with_a_transposed_kernel(sides):
    """`transpose_kernel=True` flips the kernel and swaps its input and output axes; it may be that of an encoder."""
    w = low_rank(1, (3, 3, 8, 3), (0, 1, sides[0]), (sides[1],), 2)
    fun = lambda k, x: lax.conv_transpose(x, k, (2, 2), "SAME", transpose_kernel=True)  # noqa: E731
    x = integers(2, (1, 3, 3, 3))
    check(fun, w, x)
    check_never_dense(fun, w, x, limit=3 * 3 * 8 * 3)


def test_every_member_has_its_own_image():
    w = kernel(1, (3, 3, 3, 8), 2)
    check(conv(), w, integers(2, (3, *IMAGE)), per_member=[0])


def test_members_share_one_convolution():
    w = kernel(1, (3, 3, 3, 8), members=None)
    axes = jax.tree.map(lambda _: 0, w)
    axes = type(w)(None, 0, 0, w.left_axes, w.right_axes, w.source)
    many = jax.tree.map(lambda a: jnp.stack([a] * 5), w)
    many = type(w)(w.base, many.left, many.right, w.left_axes, w.right_axes, w.source, many.scale)
    jaxpr = jax.make_jaxpr(jax.vmap(factored(conv()), in_axes=(axes, None)))(many, integers(2, IMAGE)).jaxpr
    convs = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert [e.invars[1] is jaxpr.invars[0] for e in convs].count(True) == 1


UNSPLIT = {
    "left has the output and a spatial axis": ((0, 3), (1, 2)),
    "both have a spatial axis": ((0, 1, 2), (0, 3)),
    "spatial and channels": ((0, 1), (2, 3)),
    "no owner of the output": ((0, 1), ()),
}


@pytest.mark.parametrize(("left", "right"), UNSPLIT.values(), ids=UNSPLIT)
def test_other_owners_fall_back(left, right):
    w = low_rank(1, (3, 3, 3, 4), left, right, 2)
    check(conv(), w, integers(2, IMAGE), fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"`conv_general_dilated`.*neither output nor input features"):
        check(conv(), w, integers(2, IMAGE))


OWNERS = [((0, 1, 2), (3,)), ((2,), (3,)), ((0, 1, 3), (2,)), ((0, 1), (2,))]


@pytest.mark.parametrize(("left", "right"), [p for sides in OWNERS for p in permutations(sides)])
def test_a_factor_mixes_one_side_and_the_other_may_leave_axes_out(left, right):
    """The perturbation is constant along them."""
    w = low_rank(1, (3, 3, 3, 4), left, right, 2)
    check(conv(), w, integers(2, IMAGE))


def test_batch_groups_fall_back():
    w = kernel(1, (3, 3, 3, 4), 2)
    fun = conv(batch_group_count=2)
    check(fun, w, integers(2, IMAGE), fallback="allow")
    with pytest.raises(DenseFallbackError, match="batch groups"):
        check(fun, w, integers(2, IMAGE))


def test_a_perturbed_image_falls_back():
    """A learned image, and a kernel that is perturbed as well."""
    image = low_rank(1, IMAGE, (0, 1), (2, 3), 2, path="image")
    k = kernel(2, (3, 3, 3, 4), 2)
    check(lambda p, k: conv()(k, p), image, k.base, fallback="allow")
    check(lambda p: conv()(p[0], p[1]), [k, image], fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"'image'.*image of a convolution"):
        check(lambda p, k: conv()(k, p), image, k.base)


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_narrow_dtypes(preferred):
    """The output's dtype is that of the plain convolution; rounded once, after a sum in float32."""
    w = kernel(1, (3, 3, 3, 4), 3, dtype=jnp.bfloat16, members=None)
    x = integers(2, IMAGE, jnp.bfloat16)
    fun = conv(preferred_element_type=preferred)
    got = factored(fun, fallback="error")(w, x)
    wide = conv()(jnp.asarray(dense(w).astype(np.float32)), x.astype(jnp.float32))
    magnitude = conv()(jnp.asarray(dense(jax.tree.map(jnp.abs, w)).astype(np.float32)), jnp.abs(x).astype(jnp.float32))
    assert got.dtype == (preferred or jnp.bfloat16)
    tolerance = 0 if preferred else float(jnp.finfo(jnp.bfloat16).eps) * np.asarray(magnitude)
    assert np.all(np.abs(np.asarray(got, np.float32) - np.asarray(wide)) <= tolerance)


def test_patches_and_a_product():
    """Patches are taken by a convolution of the image with a constant kernel; the weight meets a product."""
    w = low_rank(1, (12, 8), (0,), (1,), 2)

    def fun(w, x):
        patches = lax.conv_general_dilated_patches(x, (2, 2), (2, 2), "VALID", dimension_numbers=NHWC)
        return patches @ w

    check(fun, w, integers(2, IMAGE))
    check_never_dense(fun, w, integers(2, IMAGE), strict=True)
