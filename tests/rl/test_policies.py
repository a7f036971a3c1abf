"""Policies: heads against NumPy, and what does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eggroll.rl import CNN, GRU, MLP, Box, Discrete, MultiDiscrete, Policy, ReferenceCNN
from eggroll.training.options import SettingsError

SEEN = jax.ShapeDtypeStruct((3,), jnp.float32)


class Given(nnx.Module):
    """Returns numbers that it is given, plus a parameter that is zero."""

    def __init__(self, *outputs):
        self.zero, self.outputs = nnx.Param(jnp.zeros(())), outputs

    def __call__(self, x):
        return jnp.array(self.outputs, jnp.float32) + self.zero


def acted(outputs, actions, mask=None, key=None, **options):
    policy = Policy(Given(*outputs), actions, SEEN, **options)
    return np.asarray(policy.act(policy.params, policy.start(policy.params), jnp.zeros(3), mask, key)[0])


def test_heads():
    assert acted([0.1, 3, -1], Discrete(3)) == 1
    assert acted([0.1, 3, -1], Discrete(3), jnp.array([True, False, True])) == 0
    np.testing.assert_array_equal(acted([0, 1, 5, 1, 2], MultiDiscrete((2, 3))), [1, 0])
    low, high = np.float32([[-2, 0]]), np.float32([[2, 10]])
    expected = (low + high) / 2 + (high - low) / 2 * np.tanh([[0.5, -1]])
    np.testing.assert_allclose(acted([0.5, -1], Box(low, high)), expected, rtol=1e-6)
    free = Box(np.float32([-np.inf, -1]), np.float32([np.inf, 1]))
    np.testing.assert_allclose(acted([7, 0.5], free), [7, np.tanh(0.5)], rtol=1e-6)


def test_choices_are_drawn_with_their_odds():
    keys = jax.random.split(jax.random.key(0), 4000)
    policy = Policy(Given(0.0, np.log(3.0)), Discrete(2), SEEN, sample=True)
    draw = jax.jit(jax.vmap(lambda key: policy.act(policy.params, (), jnp.zeros(3), None, key)[0]))
    share = float(np.mean(np.asarray(draw(keys))))
    assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 4000)


def test_ready_ones_fit():
    rngs, image = nnx.Rngs(0), jax.ShapeDtypeStruct((6, 5, 2), jnp.float32)
    for module, seen in (
        (MLP(3, 4, rngs=rngs), SEEN),
        (GRU(3, 4, rngs=rngs), SEEN),
        (CNN((6, 5, 2), 4, rngs=rngs), image),
        (ReferenceCNN(np.ones((3, 6, 5, 2)), 4, convolutions=((2, 3, 1),), width=4, rngs=rngs), image),
    ):
        policy = Policy(module, Discrete(4), seen)
        action, carry = policy.act(policy.params, policy.start(policy.params), jnp.zeros(seen.shape))
        assert 0 <= int(action) < 4
        assert jax.tree.structure(carry) == jax.tree.structure(policy.start(policy.params))


def test_a_recurrent_policy_remembers():
    policy = Policy(GRU(3, 2, rngs=nnx.Rngs(0)), Discrete(2), SEEN)
    _, carry = policy.act(policy.params, policy.start(policy.params), jnp.ones(3))
    assert float(jnp.abs(carry).max()) > 0


def test_a_reference_batch_normalises_as_batch_normalisation_does():
    batch, rngs = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 2), np.uint8), nnx.Rngs(0)
    module = ReferenceCNN(batch, 3, convolutions=((4, 3, 2), (4, 2, 1)), width=6, rngs=rngs)
    module.scales[0][...], module.moves[1][...] = jnp.array([1.0, 2, 0.5, -1]), jnp.array([0.3, 0, -0.2, 1])
    carry, x = module.initial_carry(), jnp.asarray(batch, jnp.float32)
    outputs = jax.vmap(lambda image: module(carry, image)[1])(x)
    for layer, scale, move in zip(module.layers, module.scales, module.moves, strict=True):
        norm = nnx.BatchNorm(len(scale), rngs=rngs)
        norm.scale[...], norm.bias[...] = scale[...], move[...]
        x = nnx.relu(norm(layer(x if x.ndim == layer.kernel.ndim else x.reshape(5, -1))))
    np.testing.assert_allclose(outputs, module.head(x), rtol=1e-4, atol=1e-5)


def test_the_network_for_atari_has_as_many_parameters_as_its_paper_says():
    made = nnx.eval_shape(lambda: ReferenceCNN(jnp.zeros((1, 84, 84, 4), jnp.uint8), 6, rngs=nnx.Rngs(0)))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(made, nnx.Param)))
    assert count == 32 * 256 + 64 * 512 + 64 * 576 + 7 * 7 * 64 * 512 + 2 * (32 + 64 + 64 + 512) + 6 * 513


@pytest.mark.parametrize(
    ("module", "actions", "told"),
    [
        (Given(1, 2), Discrete(3), r"returns \(2,\) for one observation; \[3\] is required"),
        (MLP(5, 3, rngs=nnx.Rngs(0)), Discrete(3), "fails on an observation of shape"),
        (Given(1, 2), "left", "there is no head"),
        (Given(1, 2), Discrete(0), "there is no head"),
    ],
)
def test_what_does_not_fit_is_refused(module, actions, told):
    with pytest.raises(SettingsError, match=told):
        Policy(module, actions, SEEN)


def test_no_module_and_nothing_to_draw():
    with pytest.raises(TypeError, match=r"flax\.nnx\.Module"):
        Policy(lambda x: x, Discrete(2), SEEN)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="which are not drawn"):
        Policy(Given(1), Box(np.zeros(1), np.ones(1)), SEEN, sample=True)
