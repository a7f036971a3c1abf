"""The gradient is exactly the weighted sum over the members' dense parameters, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eggroll
from tests.strategy.common import KEY, assert_close, centred, dense, dense_of, descent

pytestmark = pytest.mark.optimised  # bits, as users get them

SIGMA, POPULATION = 0.03, 10
EXACT = 1e-10  # relative: room for float64's own rounding; float32 anywhere would cost 1e-7

SHAPES = {
    "embedding": (11, 6),
    "conv": (3, 6, 8),
    "layers": {"kernel": (3, 8, 8), "bias": (3, 8), "attention": (3, 8, 2, 4)},
    "scale": (8,),
    "head": (8, 5),
    "temperature": (),
}
RULES = (
    ("head", eggroll.LowRankRule(rank=3, sigma_scale=2.0)),
    ("layers/bias", eggroll.DenseRule(sigma_scale=0.5)),
    ("layers/kernel", eggroll.LowRankRule(sigma_scale=0.25)),
)
SCALES = {
    "embedding": 1.0,
    "conv": 1.0,
    "layers": {"kernel": 0.25, "bias": 0.5, "attention": 1.0},
    "scale": 1.0,
    "head": 2.0,
    "temperature": 1.0,
}
KINDS = {
    "conv": "low_rank",
    "embedding": "low_rank",
    "head": "low_rank",
    "layers/attention": "low_rank",
    "layers/bias": "dense",
    "layers/kernel": "low_rank",
    "scale": "dense",
    "temperature": "dense",
}


def model(p, tokens):
    """Lookup, convolution, a loop over stacked layers with a product over heads, scale, head: `[batch, 5]`."""
    x = jnp.tanh(p["embedding"][tokens])
    x = lax.conv_general_dilated(x, p["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    def layer(x, w):
        heads = jnp.einsum("bsd,dhk->bshk", x, w["attention"])
        return jnp.tanh(x @ w["kernel"] + w["bias"] + heads.reshape(x.shape)), None

    x, _ = lax.scan(layer, x, p["layers"])
    return (x.mean(1) * p["scale"]) @ p["head"] / p["temperature"]


def loss(p, tokens, labels):
    logits = model(p, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.fixture(name="problem")
def fixture_problem():
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)

        def array(shape):
            return jnp.asarray(rng.normal(size=shape) * 0.5 + (shape == ()), jnp.float64)

        params = jax.tree.map(array, SHAPES, is_leaf=lambda s: isinstance(s, tuple))
        tokens, labels = rng.integers(0, 11, (4, 7)), rng.integers(0, 5, 4)
        yield params, jnp.asarray(tokens), jnp.asarray(labels)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("distribution", "antithetic", "rank", "chunk"), [("rademacher", True, 1, 4), ("normal", False, 2, "auto")]
)
def test_gradient_is_the_sum_over_dense_members(problem, distribution, antithetic, rank, chunk):
    params, *data = problem
    options = {"distribution": distribution, "antithetic": antithetic}
    f = eggroll.value_and_grad(
        loss, population=POPULATION, sigma=SIGMA, rank=rank, rules=RULES, chunk=chunk, fallback="error", **options
    )
    value, grads = f(params, *data, key=KEY)
    plan = eggroll.explain(loss, params, *data, rank=rank, rules=RULES).plan
    assert {leaf.path: leaf.kind for leaf in plan.leaves} == KINDS

    members = dense_of(plan, params, KEY, POPULATION, SIGMA, **options)
    losses = np.asarray(jax.jit(jax.vmap(loss, (0, None, None)))(members, *data))
    assert losses.dtype == np.float64 and np.ptp(losses) > 1e-3
    np.testing.assert_allclose(value, losses.mean(), rtol=EXACT)
    expected = descent(members, params, centred(-losses, antithetic), SIGMA, SCALES)
    assert_close(grads, expected, EXACT)
    assert all(g.dtype == jnp.float64 and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_step_and_members_follow_the_same_sum(problem):
    params, *data = problem
    options = {"antithetic": False, "rank": 2, "chunk": 3, "shaping": "zscore"}
    es = eggroll.ES(population=POPULATION, sigma=SIGMA, rules=RULES, optimizer=optax.sgd(0.7), **options)
    state = es.init(params, KEY)
    members = es.ask(state)
    fitness = members.apply(lambda p, *data: -loss(p, *data), *data)
    stacked = dense(members)
    truth = -np.asarray(jax.jit(jax.vmap(loss, (0, None, None)))(stacked, *data))
    np.testing.assert_allclose(fitness, truth, rtol=1e-10)
    expected = descent(stacked, params, (truth - truth.mean()) / truth.std(), SIGMA, SCALES)
    new, _ = es.tell(state, members, fitness)
    assert_close(jax.tree.map(lambda a, b: (a - b) / 0.7, params, new.params), expected, 1e-9)
