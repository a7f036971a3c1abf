"""dot_general of perturbed weights."""

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
from eggroll.engine.rules.products import UNROLLED_RANK
from tests.engine.truth import (
    check,
    check_never_dense,
    compressible,
    dense,
    integers,
    low_rank,
    member_axes,
    weights,
)

ROLES = st.sampled_from(["contract", "batch", "free"])


@st.composite
def products(draw):
    """A weight, an input and the dimension numbers of a product: any roles of axes, in any order."""
    w = draw(weights(max_ndim=4))
    roles = draw(st.lists(ROLES, min_size=len(w.shape), max_size=len(w.shape)))
    extra = draw(st.lists(st.integers(1, 3), max_size=2))
    shared = draw(st.permutations([a for a, role in enumerate(roles) if role != "free"]))
    places = draw(st.permutations(range(len(shared) + len(extra))))
    sizes = [w.shape[a] for a in shared] + extra
    x_shape = tuple(sizes[i] for i in places)
    pairs = {role: [(places.index(i), a) for i, a in enumerate(shared) if roles[a] == role] for role in set(roles)}

    def numbers(role, weight_first):
        found = pairs.get(role, [])
        x_axes, w_axes = tuple(i for i, _ in found), tuple(a for _, a in found)
        return (w_axes, x_axes) if weight_first else (x_axes, w_axes)

    weight_first = draw(st.booleans())
    dims = tuple(numbers(role, weight_first) for role in ("contract", "batch"))
    return w, integers(draw(st.integers(0, 99)), x_shape), dims, weight_first


@given(products())
def test_any_dimension_numbers(case):
    w, x, dims, weight_first = case

    def product(w, x):
        return lax.dot_general(*((w, x) if weight_first else (x, w)), dims)

    check(product, w, x)
    if compressible(w):
        check_never_dense(product, w, x)


@given(products(), st.integers(0, 99))
def test_every_member_has_its_own_input(case, seed):
    w, x, dims, weight_first = case

    def product(w, x):
        return lax.dot_general(*((w, x) if weight_first else (x, w)), dims)

    check(product, w, integers(seed, (3, *x.shape)), per_member=[0])


# Ownerships of a dense layer's weight [K, N]: by input and output; the same from the other side; a batch axis.
LAYERS = [((0,), (1,)), ((1,), (0,)), ((0, 1), (1,)), ((0,), ()), ((), (1,)), ((), ())]


@pytest.mark.parametrize(("left", "right"), LAYERS)
@pytest.mark.parametrize("rank", [1, UNROLLED_RANK, UNROLLED_RANK + 1])
def test_dense_layer(left, right, rank):
    w = low_rank(1, (16, 12), left, right, rank)
    x = integers(2, (2, 16))
    both = lambda w, x: (x @ w, w.T @ x.T)  # noqa: E731
    check(both, w, x)
    if compressible(w):
        check_never_dense(both, w, x, strict=True)


def test_members_share_one_product():
    """Under vmap over factors and inputs, one product has the base as an operand, and the base has no members."""
    w = low_rank(1, (16, 12), (0,), (1,), members=5)
    population = jax.vmap(factored(lambda w, x: x @ w), in_axes=(member_axes(w), 0))
    jaxpr = jax.make_jaxpr(population)(w, integers(2, (5, 2, 16))).jaxpr
    shared = [e for e in jaxpr.eqns if e.primitive.name == "dot_general" and jaxpr.invars[0] in e.invars]
    assert len(shared) == 1
    assert {v.aval.shape for v in shared[0].invars} == {(16, 12), (5, 2, 16)}


@pytest.mark.parametrize(
    ("spec", "shape", "x_shape", "left", "right"),
    [
        ("btd,dhk->bthk", (8, 4, 6), (1, 2, 8), (0,), (1, 2)),  # attention projection
        ("bthk,hkd->btd", (4, 6, 8), (1, 2, 4, 6), (0, 1), (2,)),  # and back
        ("ecd,edf->ecf", (4, 8, 6), (4, 2, 8), (0, 1), (0, 2)),  # experts
        ("cd,edf->ecf", (4, 8, 6), (2, 8), (0, 1), (0, 2)),
        ("ecd,edf->cf", (4, 8, 6), (4, 2, 8), (0, 1), (2,)),
        ("btd,vd->btv", (12, 8), (1, 2, 8), (0,), (1,)),  # tied embedding
        ("ij,ij->", (12, 8), (12, 8), (0,), (1,)),
        ("k,ij->ijk", (12, 8), (1,), (0,), (1,)),
    ],
)
@pytest.mark.parametrize("rank", [1, UNROLLED_RANK + 1])
def test_einsum(spec, shape, x_shape, left, right, rank):
    w = low_rank(3, shape, left, right, rank)
    x = integers(4, x_shape)
    check(lambda w, x: jnp.einsum(spec, x, w), w, x)
    check_never_dense(lambda w, x: jnp.einsum(spec, x, w), w, x, strict=len(x_shape) < 4 and spec != "k,ij->ijk")


@pytest.mark.parametrize("spec", ["ii,bi->b", "ij,bj->b"])
def test_diagonals_and_sums_of_a_weight_alone_fall_back(spec):
    w = low_rank(3, (6, 6), (0,), (1,))
    check(lambda w, x: jnp.einsum(spec, w, x), w, integers(1, (2, 6)), fallback="allow")


@pytest.mark.parametrize("preferred", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("w_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("contract", [((2,), (0,)), ((0,), (0,))], ids=["kernel", "general"])
def test_dtypes(preferred, x_dtype, w_dtype, contract):
    """Every mix of dtypes keeps the dtype of dot_general; one rounding in that dtype, the rest in float32."""
    w = low_rank(5, (16, 12), (0,), (1,), 3, dtype=w_dtype, members=None)
    # Thirds are not exact in bfloat16: rounding a float32 factor to an input's bfloat16 would show.
    w = jax.tree.map(lambda a: a / 3, w) if w_dtype == jnp.float32 else w
    x = integers(6, (2, 3, 16) if contract[0] == (2,) else (16, 2, 3), x_dtype)
    dims = (contract, ((), ()))

    def product(w, x):
        return lax.dot_general(x, w, dims, preferred_element_type=preferred)

    got = factored(product, fallback="error")(w, x)
    want = jax.eval_shape(product, w.base, x)
    assert got.dtype == want.dtype and got.shape == want.shape
    truth = np.tensordot(np.asarray(x, np.float64), dense(w), contract)
    magnitude = np.tensordot(np.abs(np.asarray(x, np.float64)), dense(jax.tree.map(jnp.abs, w)), contract)
    # 16 products and 3 ranks summed in float32; the base product and the result rounded to the output's dtype.
    tolerance = 24 * np.finfo(np.float32).eps * magnitude + 2 * float(jnp.finfo(want.dtype).eps) * magnitude
    assert np.all(np.abs(np.asarray(got, np.float64) - truth) <= tolerance)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64, jnp.float16])
@pytest.mark.parametrize("spec", ["bk,kn->bn", "kb,nk->nb"], ids=["kernel", "general"])
def test_inputs_of_other_dtypes(dtype, spec):
    w = low_rank(7, (8, 8), (0,), (1,), 2)
    dims = {"bk,kn->bn": ((1,), (0,)), "kb,nk->nb": ((0,), (1,))}[spec]
    x = integers(8, (8, 8)).astype(dtype)
    check(lambda w, x: lax.dot_general(x, w, (dims, ((), ()))), w, x)


@pytest.mark.parametrize("precision", [None, lax.Precision.HIGH, lax.Precision.HIGHEST, "float32"])
@pytest.mark.parametrize("spec", ["bk,kn->bn", "kb,nk->nb"], ids=["kernel", "general"])
def test_corrections_have_the_precision_of_the_product(precision, spec):
    """A correction less precise than the product that it corrects would be worthless on a TPU or a GPU."""
    w = low_rank(7, (8, 8), (0,), (1,), UNROLLED_RANK + 1, members=None)

    def product(w, x):
        return jnp.einsum(spec, x, w, precision=precision)

    def precisions(fun, *args):
        found = [e.params["precision"] for e in jax.make_jaxpr(fun)(*args).eqns if e.primitive.name == "dot_general"]
        return [p if p is None else lax.Precision(p[0]) for p in found]

    (required,) = precisions(product, w.base, jnp.ones((8, 8)))
    got = precisions(factored(product), w, jnp.ones((8, 8)))
    assert len(got) == 3
    assert got[0] == required and all(p in (required, lax.Precision.HIGHEST) for p in got)


def test_an_algorithm_applies_to_the_base_product_only():
    w = low_rank(7, (8, 8), (0,), (1,), members=None)

    def product(w, x):
        return jnp.einsum("kb,nk->nb", x, w, precision=lax.DotAlgorithmPreset.BF16_BF16_F32)

    jaxpr = jax.make_jaxpr(factored(product))(w, jnp.ones((8, 8)))
    assert "BF16_BF16_F32" in str(jaxpr) and str(jaxpr).count("BF16_BF16_F32") == 1


@pytest.mark.parametrize("spec", ["ij,jk->ik", "ij,kj->ik", "ij,kl->ijkl"])
def test_two_perturbed_values_of_too_high_a_rank(spec):
    """The smaller one is made dense, and said to be."""
    params = [low_rank(1, (5, 5), (0,), (1,), 2, path="a"), low_rank(2, (5, 5), (0,), (1,), 2, path="b")]

    def product(params):
        return jnp.einsum(spec, *params)

    check(product, params, fallback="allow")
    with pytest.raises(DenseFallbackError, match=r"'a'.*two perturbed values"):
        check(product, params)


@pytest.mark.parametrize("tokens", [2, 20])
def test_a_weight_stays_factored_where_it_meets_a_perturbed_activation(tokens):
    """Positions added, or learned tokens put in front: both are kept apart, or the activation alone is made dense."""
    w = low_rank(1, (8, 6), (0,), (1,), path="w")
    learned = low_rank(2, (tokens, 8), (1,), (0,), path="learned")
    x = integers(3, (tokens, 8))
    for fun in (lambda p, x: (x + p[1]) @ p[0], lambda p, x: p[0].T @ jnp.concatenate([p[1], x]).T):
        check(fun, [w, learned], x, fallback="allow")
        with pytest.raises(DenseFallbackError, match=r"'learned'.*two perturbed values"):
            check(fun, [w, learned], jnp.stack([x, x, x]), per_member=[0])


def test_a_value_with_itself():
    w = low_rank(1, (5, 4), (0,), (1,), 2)
    check(lambda w: w @ w.T, w, fallback="allow")
    check(lambda w: jnp.vdot(w, w), w, fallback="allow")


def test_two_layers_keep_both_apart():
    params = [low_rank(1, (8, 6), (0,), (1,), path="a"), low_rank(2, (6, 8), (0,), (1,), path="b")]
    check(lambda p, x: x @ p[0] @ p[1], params, integers(1, (2, 8)))
    check_never_dense(lambda p, x: x @ p[0] @ p[1], params, integers(1, (2, 8)), strict=True)


def test_no_product_at_all():
    """A contracted axis of size zero, and an empty batch."""
    w = low_rank(1, (0, 4), (0,), (1,), 2)
    check(lambda w, x: x @ w, w, jnp.zeros((3, 0)))
    check(lambda w, x: w.T @ x, w, jnp.zeros((0, 3)))
    w = low_rank(1, (5, 4), (0,), (1,), 2)
    check(lambda w, x: x @ w, w, jnp.zeros((0, 5)))
