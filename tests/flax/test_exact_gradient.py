"""The gradient is the sum over members, written out with every member's dense parameters in float64."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eggroll.nnx
from eggroll.strategy.noise.keys import generation_key
from tests.flax.truth import EPS32, POPULATION, ask, functional, normal
from tests.quick import quickest

SIGMA = 0.25
RUN = jax.random.key(7)  # `ask` starts its run from it
KEY = generation_key(RUN, 0)
X, Y = normal(0, 8, 4), normal(1, 8, 3)


def written_out(fun: Any, params: Any, *args: Any, **options: Any) -> tuple[float, list[np.ndarray], list[float]]:
    """Mean loss, −1/(N·σ²)·Σ wᵢ·(Wᵢ − W) for w = mean − loss, and how far rounding may move each leaf of it.

    `Wᵢ − W` is wrong by half a unit in the last place of a weight, and a loss (and so wᵢ) by some units in its own.
    """
    members = ask(params, sigma=SIGMA, **options)
    members.apply(fun, *args)  # the plan follows the function
    alone = jax.jit(fun)
    dense = [members.materialize(i) for i in range(POPULATION)]
    losses = np.asarray([alone(d, *args) for d in dense], np.float64)
    weights = losses.mean() - losses
    sums, bounds = [], []
    for leaf, *each in zip(jax.tree.leaves(params), *map(jax.tree.leaves, dense), strict=True):
        moved = np.asarray(each, np.float64) - np.asarray(leaf, np.float64)
        sums.append(-np.tensordot(weights, moved, 1) / (POPULATION * SIGMA**2))
        in_weights = EPS32 * np.abs(np.asarray(each)).max() * np.abs(weights).mean()
        in_losses = 8 * EPS32 * np.abs(losses).max() * np.abs(moved).max()
        bounds.append((in_weights + in_losses) / SIGMA**2)
    return losses.mean(), sums, bounds


def check(value: Any, grads: Any, truth: tuple) -> None:
    mean, sums, bounds = truth
    np.testing.assert_allclose(value, mean, rtol=64 * EPS32)
    for got, want, bound in zip(jax.tree.leaves(grads), sums, bounds, strict=True):
        assert np.abs(np.asarray(got, np.float64) - want).max() <= bound
        assert np.abs(want).max() > 1000 * bound, "rounding could hide an error"


class Network(nnx.Module):
    """Convolution, batch statistics, dropout, a scale and a matrix: every kind of perturbation, every kind of state."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(2, 4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x.reshape(8, 2, 2))))
        return self.head(self.dropout(x).mean(1))


def mean_square(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    quickest([{}, {"rank": 2, "distribution": "normal", "antithetic": False}], {}),
    ids=["default", "rank 2, normal, no pairs"],
)
def test_of_an_nnx_model(options):
    model = Network(nnx.Rngs(0))
    fun, params, rest = functional(model, mean_square)
    truth = written_out(fun, params, rest, X, Y, **options)
    estimate = eggroll.nnx.value_and_grad(mean_square, population=POPULATION, sigma=SIGMA, **options)
    value, grads = estimate(model, X, Y, key=KEY)
    scale = 1.0 if options.get("antithetic", True) else POPULATION / (POPULATION - 1)
    # Without pairs each member is compared with the mean of the others, which is the usual weight times N/(N − 1).
    check(value, grads, (truth[0], [scale * g for g in truth[1]], truth[2]))


@pytest.mark.slow
def test_of_adapters_alone():
    model = nnx.LoRALinear(4, 3, lora_rank=2, rngs=nnx.Rngs(0))
    model.lora.lora_b[...] = normal(2, 2, 3)
    fun, params, rest = functional(model, mean_square, wrt=nnx.LoRAParam)
    estimate = eggroll.nnx.value_and_grad(mean_square, wrt=nnx.LoRAParam, population=POPULATION, sigma=SIGMA)
    check(*estimate(model, X, Y, key=KEY), written_out(fun, params, rest, X, Y))


@pytest.mark.slow
def test_of_a_linen_model_with_stacked_experts():
    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x):
            up = self.param("up", nn.initializers.lecun_normal(batch_axis=0), (3, 4, 6))
            down = self.param("down", nn.initializers.lecun_normal(batch_axis=0), (3, 6, 3))
            hidden = nn.tanh(jnp.einsum("ebd,edf->ebf", jnp.stack([x, -x, x**2]), up))
            return jnp.einsum("ebf,efd->ebd", hidden, down).sum(0)

    model = Experts()
    params = model.init(jax.random.key(0), X)

    def loss(params, x, y):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    estimate = eggroll.value_and_grad(loss, population=POPULATION, sigma=SIGMA)
    value, grads = estimate(params, X, Y, key=KEY)
    check(value, grads, written_out(loss, params, X, Y))
    assert jax.tree.structure(grads) == jax.tree.structure(params)
