"""Autoregressive decoding with a key-value cache: the cache is every member's own, its factors are made once."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.flax.truth import check_members, check_model, normal

STEPS, WIDTH = 3, 4
X = normal(0, 2, STEPS, WIDTH)  # batch, time, features


def attention() -> nnx.MultiHeadAttention:
    layer = nnx.MultiHeadAttention(2, WIDTH, decode=True, use_bias=False, rngs=nnx.Rngs(0))
    layer.init_cache(X.shape)
    return layer


def step_by_step(layer, x):
    outs = [layer(x[:, t : t + 1]) for t in range(STEPS)]
    return jnp.concatenate(outs, 1), nnx.state(layer, nnx.Cache)


def scanned(layer, x):
    axes = nnx.StateAxes({nnx.Cache: nnx.Carry, ...: None})

    @nnx.scan(in_axes=(axes, 1), out_axes=1)
    def run(layer, row):
        return layer(row[:, None])[:, 0]

    return run(layer, x), nnx.state(layer, nnx.Cache)


@pytest.mark.first(1)
@pytest.mark.parametrize("decode", [step_by_step, scanned], ids=["python loop", "scan"])
def test_nnx_attention_returns_outputs_and_caches_of_every_member(decode):
    members = check_model(attention(), X, call=decode)
    assert len(members.plan.leaves) == 4  # four kernels, no cache


@pytest.mark.slow
def test_linen_attention_with_a_mutable_cache():
    model = nn.MultiHeadDotProductAttention(2, decode=True, use_bias=False)
    variables = model.init(jax.random.key(0), X)

    def decode(params, cache, x):
        outs = []
        for t in range(STEPS):
            out, new = model.apply({"params": params, "cache": cache}, x[:, t : t + 1], mutable=["cache"])
            cache = new["cache"]
            outs.append(out)
        return jnp.concatenate(outs, 1), cache

    check_members(decode, variables["params"], variables["cache"], X)


def test_greedy_decoding_in_a_loop_of_unknown_length():
    """Tokens that the model chose are its next inputs; a while loop ends at the end-of-text token."""

    def generate(params, prompt):
        def going(state):
            length, ids, _ = state
            return (length < 8) & (ids[length - 1] != 0)

        def step(state):
            length, ids, hidden = state
            hidden = jnp.tanh(hidden @ params["recurrent"] + params["embedding"][ids[length - 1]])
            token = jnp.argmax(hidden @ params["embedding"].T).astype(ids.dtype)
            return length + 1, ids.at[length].set(token), hidden

        start = jnp.zeros(8, jnp.int32).at[0].set(prompt)
        return jax.lax.while_loop(going, step, (jnp.int32(1), start, jnp.zeros(6)))

    params = {"recurrent": normal(1, 6, 6), "embedding": normal(2, 5, 6)}
    lengths = check_members(generate, params, jnp.int32(3), sigma=0.5).apply(generate, jnp.int32(3))[0]
    assert len(set(lengths.tolist())) > 1, "members should end at different lengths"
