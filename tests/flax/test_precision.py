"""bfloat16: parameters in it, and computation in it on float32 parameters."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eggroll.nnx
from tests.flax.truth import check_members, check_model, functional, normal

EPS16 = float(jnp.finfo(jnp.bfloat16).eps)
# A few roundings of an activation one after the other, each by half a unit of at most the largest magnitude.
TOLERANCE = 6 * EPS16
COARSE = {"tolerance": TOLERANCE, "margin": 3.0, "sigma": 0.3, "distribution": "normal"}
X = normal(0, 6, 5)


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, **dtypes) -> None:
        self.body = nnx.Linear(5, 8, rngs=rngs, **dtypes)
        self.norm = nnx.LayerNorm(8, rngs=rngs, **dtypes)
        self.head = nnx.Einsum("bf,fhk->bhk", (8, 2, 3), (2, 3), rngs=rngs, **dtypes)

    def __call__(self, x):
        return self.head(nnx.tanh(self.norm(self.body(x))))


BF16_PARAMS = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16}
DTYPES = {
    "bfloat16 parameters": BF16_PARAMS,
    "bfloat16 computation": {"param_dtype": jnp.float32, "dtype": jnp.bfloat16},
    "float32 computation on bfloat16 parameters": {"param_dtype": jnp.bfloat16, "dtype": jnp.float32},
}


def call(model, x):
    # Flax's LayerNorm asks for the common type of bfloat16 and float32. Only the model's own code is excused: what the
    # engine does with its jaxpr runs under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        return model(x)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=list(DTYPES))
def test_nnx(dtypes):
    members = check_model(Network(nnx.Rngs(0), **dtypes), X, call=call, **COARSE)
    assert {leaf.dtype for leaf in members.plan.leaves} == {jnp.dtype(dtypes["param_dtype"]).name}


@pytest.mark.slow
def test_linen_attention_in_bfloat16():
    model = nn.MultiHeadDotProductAttention(2, use_bias=False, dtype=jnp.bfloat16)
    x = normal(1, 2, 5, 4)
    check_members(model.apply, model.init(jax.random.key(0), x), x, **COARSE)


def test_members_of_bfloat16_parameters_are_nearer_to_the_unrounded_weights_than_to_rounding():
    """The factors never pass through a rounded dense weight: against float64 the error is that of one product."""
    model = nnx.Linear(64, 3, use_bias=False, rngs=nnx.Rngs(0), **BF16_PARAMS)
    fun, params, rest = functional(model)
    x = normal(2, 6, 64, dtype=jnp.bfloat16)
    es = eggroll.ES(population=6, sigma=0.05, fallback="error")
    members = es.ask(es.init(params, jax.random.key(7)))
    outs = np.asarray(members.apply(fun, rest, x), np.float64)
    base, wide = (np.asarray(a, np.float64) for a in (params["kernel"][...], x))
    for i in range(6):
        rounded = np.asarray(members.materialize(i)["kernel"][...], np.float64)
        sign = np.sign(rounded - base)
        exact = wide @ (base + 0.05 * sign)  # Rademacher factors: every entry moves by sigma, up or down
        assert np.abs(outs[i] - exact).max() <= EPS16 * np.abs(exact).max()


@pytest.mark.slow
def test_gradients_have_the_dtypes_of_their_parameters():
    model = Network(nnx.Rngs(0), **BF16_PARAMS)
    loss = lambda model, x: jnp.mean(call(model, x).astype(jnp.float32) ** 2)  # noqa: E731
    value, grads = eggroll.nnx.value_and_grad(loss, population=6, sigma=0.1, fallback="error")(
        model, X, key=jax.random.key(0)
    )
    assert value.dtype == jnp.float32
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.bfloat16
        assert bool((leaf != 0).any())
