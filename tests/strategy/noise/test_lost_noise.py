"""Parameters that would share their noise, and noise that would be rounded to zero, are refused."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.engine.paths import path_hash
from eggroll.strategy.plan.leaves import make_plan
from tests.strategy.common import KEY, X, Y, assert_same_bits, es, fitness, loss, params

pytestmark = pytest.mark.optimised  # bits, as users get them

N = 8


def test_paths_with_the_same_hash():
    seen = {}
    for letters in itertools.product("abcdefghijklmnop", repeat=5):  # 2²⁰ words, far beyond √2³²
        word = "".join(letters)
        if (other := seen.setdefault(path_hash(word), word)) != word:
            break
    assert path_hash(word) == path_hash(other) and word != other
    p = {word: jnp.ones((4, 3)), other: jnp.ones((4, 3))}
    text = f"two parameters with paths, '({word}|{other})' and '({word}|{other})', of the same hash.*Rename"
    for call in (lambda: make_plan(p, None), lambda: es(N).init(p, KEY)):
        with pytest.raises(ValueError, match=text):
            call()
    frozen = make_plan(p, None, rules=[(word, "frozen")])
    assert sorted(leaf.kind for leaf in frozen.leaves) == ["frozen", "low_rank"]


def test_two_parameters_of_one_path():
    p = {"a": {"b": jnp.ones((4, 3))}, "a/b": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match="two parameters with the same path 'a/b'"):
        make_plan(p, None)


@pytest.mark.parametrize(
    ("dtype", "sigma", "least"),
    [("float16", 2e-8, "5.96e-08"), ("bfloat16", 1e-39, "1.18e-38"), ("float32", np.float64(1e-39), "1.18e-38")],
)
def test_a_sigma_that_is_zero_in_the_dtype(dtype, sigma, least):
    p = jax.tree.map(lambda x: x.astype(dtype), params())
    strategy = es(N, sigma)
    state = strategy.init(p, KEY)
    x, y = X.astype(dtype), Y.astype(dtype)
    before = jax.tree.map(jnp.copy, state)
    for call in (
        lambda: strategy.step(state, fitness, x, y),
        lambda: strategy.tell(state, strategy.ask(state), np.arange(N)),
        lambda: strategy.ask(state).apply(fitness, x, y),
        lambda: strategy.ask(state).materialize(0),
        lambda: eggroll.value_and_grad(loss, population=N, sigma=sigma)(p, x, y, key=KEY),
    ):
        with pytest.raises(ValueError, match=rf"got sigma={sigma:g}, .*zero in its dtype {dtype}, .* {least}"):
            call()
    assert_same_bits(state, before)


def test_a_small_sigma_counts_for_noise_alone():
    frozen = {"kernel": jnp.ones((4, 3), jnp.float16), "table": jnp.arange(3), "bias": jnp.zeros(3)}
    strategy = es(N, 1e-9, rules=(("kernel", "frozen"), ("table", "frozen")))
    state = strategy.init(frozen, KEY)
    member = strategy.ask(state).materialize(0)
    np.testing.assert_allclose(np.abs(member["bias"]), 1e-9, rtol=1e-6)
    scaled = eggroll.ES(population=N, sigma=1.0, rules=[("bias", eggroll.DenseRule(sigma_scale=1e-40))])
    with pytest.raises(ValueError, match="'bias' noise of size 1e-40"):
        scaled.ask(scaled.init(params(), KEY)).materialize(0)
