"""Random bits inside the function: of a member's own key they are the same in any chunk, in a pair, and alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import eggroll
import eggroll.nnx
from tests.quick import quickest

X = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
POPULATION = 8


def drawn(params, x, key):
    """Bits beside the parameters' product, and in a call that no parameter enters."""
    return jnp.where(jax.random.bernoulli(key, 0.5, (5, 4)), x @ params["w"], 0)


def drawn_in_a_loop(params, x, key):
    """Of keys made on the way."""
    first, second = jax.random.split(key)
    keys = jax.random.split(second, 2)
    noise = lax.scan(lambda c, k: (c + jax.random.uniform(k, (4,)), None), jnp.zeros(4), keys)[0]
    return drawn(params, x, first) + noise


def assert_as_alone(fun, rows):
    """Two chunks of two pairs, whose members differ by no more than the comparison allows."""
    es = eggroll.ES(population=POPULATION, sigma=1e-6, optimizer=optax.sgd(0.1), chunk=4)
    members = es.ask(es.init({"w": jnp.ones((8, 4))}, jax.random.key(0)))
    got = np.asarray(members.apply(fun, X, rows, in_axes=(None, 0)))
    alone = jax.jit(fun)
    want = np.stack([alone(members.materialize(i), X, rows[i]) for i in range(POPULATION)])
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(got[::2], got[1::2], atol=1e-4)
    assert np.abs(got[0] - got[2]).max() > 0.1  # another pair, other bits


@pytest.mark.parametrize("impl", quickest(["rbg", "unsafe_rbg"], "unsafe_rbg"))
def test_rows_of_keys(impl):
    assert_as_alone(drawn_in_a_loop, jnp.stack([jax.random.key(i // 2, impl=impl) for i in range(POPULATION)]))


def test_keys_made_of_rows():
    shared = jax.random.key(5, impl="unsafe_rbg")
    assert_as_alone(lambda p, x, i: drawn(p, x, jax.random.fold_in(shared, i)), jnp.arange(POPULATION) // 2)


def test_another_default_generator():
    with jax.default_prng_impl("rbg"):
        assert_as_alone(drawn, jnp.stack([jax.random.PRNGKey(i // 2) for i in range(POPULATION)]))
        es = eggroll.ES(population=4, sigma=0.1)
        typed, legacy = (es.init({"w": jnp.ones(3)}, make(3)) for make in (jax.random.key, jax.random.PRNGKey))
        assert typed.key == legacy.key
        state, _ = es.step(typed, lambda p: -jnp.sum(p["w"] ** 2))
        assert state.generation == 1


class Dropped(nnx.Module):
    def __init__(self, impl):
        self.linear = nnx.Linear(8, 1, rngs=nnx.Rngs(0))
        self.rngs = nnx.Rngs(dropout=jax.random.key(7, impl=impl))

    def masks(self):
        return jax.random.bernoulli(self.rngs.dropout(), 0.5, (5, 1))


class DroppedByStack(Dropped):
    """With a stream for each of the five rows."""

    def __init__(self, impl):
        super().__init__(impl)
        nnx.split_rngs(self.rngs, splits=5)

    def masks(self):
        return nnx.vmap(lambda rngs: jax.random.bernoulli(rngs.dropout(), 0.5, (1,)))(self.rngs)


@pytest.mark.parametrize(
    ("impl", "model"),
    quickest(
        [("unsafe_rbg", Dropped), ("rbg", DroppedByStack), ("threefry2x32", DroppedByStack)],
        ("rbg", DroppedByStack),
    ),
)
def test_a_gradient_with_masks_of_each_pairs_own(impl, model):
    """Of a quadratic loss a pair's difference is the slope at any sigma, if both saw the same masks."""

    def loss(model, x):
        return jnp.mean((jnp.where(model.masks(), 2 * model.linear(x), 0) - 1) ** 2)

    found = {}
    for sigma, chunk in ((0.1, 128), (1e-3, 64)):
        f = eggroll.nnx.grad(loss, population=512, sigma=sigma, share_rngs=False, chunk=chunk)
        found[sigma] = f(model(impl), X, key=jax.random.key(1))["linear"]["kernel"][:, 0]
    np.testing.assert_allclose(found[0.1], found[1e-3], rtol=0, atol=5e-3)
    y, x = np.asarray(model(impl).linear(X)), X  # the mean over masks: half of (2y − 1)², and half of 1
    truth = (2 * (2 * y - 1) * x).mean(0)
    size = np.linalg.norm(truth)
    # 256 pairs measure 9 numbers; masks make each slope about as uncertain as it is large.
    assert np.linalg.norm(found[0.1] - truth) < size / 2
