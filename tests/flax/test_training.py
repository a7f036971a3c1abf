"""Short runs that learn: unmodified models, ordinary optimizers, no backpropagation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll.nnx
from tests.flax.truth import functional, normal

KEYS = jax.random.split(jax.random.key(3), 40)


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 6, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.conv(x)))).mean(1))


def waves(seed: int, n: int = 64) -> tuple[jax.Array, jax.Array]:
    """Slow and fast waves of any phase, `[n, 16, 1]`, and which they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    phase, time = rng.uniform(0, 2 * np.pi, (n, 1)), np.arange(16)
    signal = np.sin(np.where(labels, 1.8, 0.7)[:, None] * time + phase)
    return jnp.asarray(signal[..., None], jnp.float32), jnp.asarray(labels)


@pytest.mark.slow
def test_a_convolutional_classifier_in_an_nnx_training_loop():
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.3, momentum=0.9), wrt=nnx.Param)

    def loss_fn(model, x, y):
        logits = model(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    estimate = eggroll.nnx.value_and_grad(loss_fn, population=64, sigma=0.1, has_aux=True, fallback="error")

    @nnx.jit
    def train_step(model, optimizer, x, y, key):
        (loss, _), grads = estimate(model, x, y, key=key)
        optimizer.update(model, grads)
        return loss

    data = waves(0)
    losses = [float(train_step(model, optimizer, *data, key)) for key in KEYS]
    assert losses[-1] < losses[0] / 3
    model.eval()  # on statistics that training has averaged, and without dropout
    x, y = waves(1)
    assert (model(x).argmax(1) == y).mean() > 0.9


@pytest.mark.slow
def test_a_recurrent_network_learns_to_remember():
    """The sign of the first input, asked for after five others."""
    x = normal(0, 64, 6, 2)
    target = jnp.sign(x[:, 0, 0])
    model = nnx.Sequential(nnx.RNN(nnx.GRUCell(2, 6, rngs=nnx.Rngs(0))), nnx.Linear(6, 1, rngs=nnx.Rngs(1)))

    def fitness(model, x, target):
        return -jnp.mean((model(x)[:, -1, 0] - target) ** 2)

    fun, params, rest = functional(model, fitness)
    es = eggroll.ES(population=128, sigma=0.1, optimizer=optax.adam(0.05), fallback="error")
    state = es.init(params, jax.random.key(1))
    scores = []
    for _ in range(80):
        state, metrics = es.step(state, fun, rest, x, target)
        scores.append(float(metrics["fitness_mean"]))
    assert scores[0] < -0.8
    assert scores[-1] > -0.5
    nnx.update(model, state.params)
    assert fitness(model, x, target) > -0.4


@pytest.mark.slow
def test_an_adapter_learns_and_its_base_stays():
    model = nnx.LoRALinear(8, 4, lora_rank=2, rngs=nnx.Rngs(0))
    x = normal(0, 32, 8)
    teacher = model.kernel[...] + 0.5 * normal(1, 8, 2) @ normal(2, 2, 4)
    base = jnp.copy(model.kernel[...])
    optimizer = nnx.Optimizer(model, optax.sgd(0.2), wrt=nnx.LoRAParam)
    loss_fn = lambda model, x, y: jnp.mean((model(x) - y) ** 2)  # noqa: E731
    estimate = eggroll.nnx.value_and_grad(loss_fn, wrt=nnx.LoRAParam, population=128, sigma=0.02)
    first = loss_fn(model, x, x @ teacher)
    for key in KEYS:
        _, grads = estimate(model, x, x @ teacher, key=key)
        optimizer.update(model, grads)
    assert loss_fn(model, x, x @ teacher) < first / 4
    np.testing.assert_allclose(model.kernel[...], base, rtol=1e-5)
