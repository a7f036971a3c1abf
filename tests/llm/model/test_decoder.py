"""The decoder: a cache and padding change nothing, and the engine walks through all of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eggroll
from eggroll.llm.model.config import config_from
from eggroll.llm.model.decoder import Decoder, empty_cache
from tests.llm.families import SETTINGS
from tests.quick import quickest

TIME, LENGTH = 9, 12
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 250, (3, TIME)), jnp.int32)
START = jnp.array([0, 4, TIME], jnp.int32)  # the last row is all padding


def made(family, dtype=jnp.float32):
    model = Decoder(config_from(SETTINGS[family]), rngs=nnx.Rngs(0), dtype=dtype)
    graph, params = nnx.split(model, nnx.Param)
    # Norms of 1 and biases of 0 would hide a missing one.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape, dtype) for leaf, key in zip(leaves, keys, strict=True)]
    return graph, jax.tree.unflatten(tree, noisy)


def with_cache(extend, config, dtype, prompt):
    """Logits `[batch, vocabulary]` at the prompt's end and after each further token."""
    logits, cache = extend(TOKENS[:, :prompt], empty_cache(config, len(TOKENS), LENGTH, dtype), 0, START)
    found = [logits]
    for column in range(prompt, TIME):
        logits, cache = extend(TOKENS[:, column : column + 1], cache, jnp.int32(column), START)
        found.append(logits)
    return jnp.stack(found, axis=1)


@pytest.mark.parametrize("dtype", quickest([jnp.float32, jnp.bfloat16], jnp.float32))
def test_a_cache_changes_nothing(dtype):
    """Of other families, `test_parity.py` compares what is written with a cache with transformers' answers."""
    family = "gemma3"
    graph, params = made(family, dtype)
    extend = jax.jit(lambda *args: nnx.merge(graph, params).extend(*args))
    steps = with_cache(extend, config_from(SETTINGS[family]), dtype, TIME - 3)
    whole = jax.jit(lambda: nnx.merge(graph, params)(TOKENS, START))()
    assert whole.dtype == steps.dtype == jnp.float32
    assert np.isfinite(whole).all() and np.isfinite(steps).all()
    tolerance = 1e-4 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(steps[:2], whole[:2, TIME - 4 :], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", quickest(["llama3", "gemma3"]))
def test_padding_on_the_left_changes_nothing(family):
    graph, params = made(family)
    model = nnx.merge(graph, params)
    padded = model(TOKENS, START)
    np.testing.assert_allclose(padded[1, 4:], model(TOKENS[1:2, 4:])[0], atol=1e-4)
    other = model(TOKENS.at[1, :4].set(7), START)
    assert np.array_equal(other[1, 4:], padded[1, 4:])  # what stands there is never looked at


@pytest.mark.slow
def test_no_token_looks_ahead():
    graph, params = made("gemma3")
    model = nnx.merge(graph, params)
    changed = model(TOKENS.at[0, 5].add(1))
    same = np.asarray(model(TOKENS)) == np.asarray(changed)
    assert same[0, :5].all() and not same[0, 5].all() and same[1:].all()


@pytest.mark.slow  # `test_families.py` has an engine by default
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_engine_keeps_every_matrix_factored_and_agrees_with_the_dense_member(family):
    graph, params = made(family)
    es = eggroll.ES(population=4, sigma=0.1, fallback="error", chunk=4)
    members = es.ask(es.init(params, jax.random.key(2)))

    def both(params):
        model = nnx.merge(graph, params)
        return model(TOKENS, START), with_cache(model.extend, model.config, jnp.float32, TIME - 1)

    found = members.apply(both)
    dense = jax.jit(both)
    for i in (0, 3):
        for each, wanted, base in zip(found, dense(members.materialize(i)), dense(params), strict=True):
            np.testing.assert_allclose(each[i, :2], wanted[:2], atol=3e-4, rtol=3e-4)
            assert np.abs(wanted[:2] - base[:2]).max() > 0.1  # the perturbation matters
    kinds = {row.path: row.kind for row in members.plan.leaves}
    assert kinds and all((kind == "dense") == ("norm" in path or "bias" in path) for path, kind in kinds.items())
