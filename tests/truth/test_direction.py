"""On a real network and real images: as sigma → 0 the expectation is `jax.grad`, and its cosine is what theory says.

With `M` independent directions `E` (antithetic pairs) and `sigma → 0` the estimate is `g = (1/M)·Σ (E·∇)·E`. Then

    E[g·∇] = |∇|²,    E|g|² = |∇|²·(M − 1 + K)/M,    K = E[(E·∇)²·|E|²]/|∇|²,

so that the cosine between `g` and `∇` is close to `√(M/(M − 1 + K))`. For rademacher noise of rank 1 `|E|²` is the
number of parameters `D` in every draw, and `K = D`. For normal noise of rank 1 a matrix `m×n` has `(m + 2)(n + 2)` in
its own place and a vector of `D` numbers `D + 2`, weighted by their shares of `|∇|²`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn.datasets import load_digits

import eggroll
from tests.strategy.common import KEY

SIGMA = 1e-3
ALPHA = 1e-5  # chance that a right estimator fails in one test
HIDDEN, IMAGES = 12, 64


@functools.cache
def problem():
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    params = {
        "in": {"kernel": array(64, HIDDEN), "bias": array(HIDDEN)},
        "out": {"kernel": array(HIDDEN, 10), "bias": array(10)},
    }
    return params, jnp.asarray(images[:IMAGES] / 16, jnp.float32), jnp.asarray(labels[:IMAGES])


def loss(p, images, labels):
    hidden = jnp.tanh(images @ p["in"]["kernel"] + p["in"]["bias"])
    logits = hidden @ p["out"]["kernel"] + p["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def flat(tree):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)])


@functools.cache
def exact():
    return jax.grad(loss)(*problem())


def predicted_k(distribution):
    """`K` of the module's docstring."""
    gradient = exact()
    sizes = jax.tree.map(jnp.size, gradient)
    total = sum(jax.tree.leaves(sizes))
    if distribution == "rademacher":
        return total

    def own(g):
        return (g.shape[0] + 2) * (g.shape[1] + 2) if g.ndim == 2 else g.size + 2

    shares = [float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(gradient)]
    places = [own(g) + total - g.size for g in jax.tree.leaves(gradient)]
    return float(np.average(places, weights=shares))


@functools.cache
def estimates(distribution, pairs, seeds):
    """`[seeds, D]` estimates of `jax.grad`, and the values."""
    f = eggroll.value_and_grad(loss, population=2 * pairs, sigma=SIGMA, distribution=distribution)
    keys, args = jax.random.split(jax.random.fold_in(KEY, pairs), seeds), problem()
    values, grads = jax.jit(lambda keys: jax.lax.map(lambda key: f(*args, key=key), keys))(keys)
    grads = [np.asarray(g, np.float64).reshape(seeds, -1) for g in jax.tree.leaves(grads)]
    return np.asarray(values), np.concatenate(grads, axis=1)


def interval(samples):
    """Mean, and half the width of its confidence interval."""
    quantile = stats.t.ppf(1 - ALPHA / 2, len(samples) - 1)
    return samples.mean(), quantile * samples.std(ddof=1) / np.sqrt(len(samples))


CASES = [("rademacher", 256, 24), ("normal", 128, 48)]


@pytest.mark.first(1)
@pytest.mark.parametrize(("distribution", "pairs", "seeds"), CASES)
def test_projection_length_and_cosine(distribution, pairs, seeds):
    truth = flat(exact())
    _, grads = estimates(distribution, pairs, seeds)
    projection = grads @ truth / (truth @ truth)
    mean, half = interval(projection)
    assert abs(mean - 1) <= half
    square = (grads**2).sum(axis=1) / (truth @ truth)
    expected = (pairs - 1 + predicted_k(distribution)) / pairs
    mean, half = interval(square)
    assert abs(mean - expected) <= half and half < 0.3 * expected
    cosine = projection / np.sqrt(square)
    mean, half = interval(cosine)
    assert abs(mean - np.sqrt(1 / expected)) <= half + ratio_bias(projection, square)
    assert half < 0.1 * mean


def ratio_bias(projection, square):
    """Bound on `|E[p/√q] − E[p]/√E[q]|`: the second-order terms of Taylor's series, doubled for the rest of it."""
    p, q = projection.mean(), square.mean()
    covariance = np.cov(projection, square)
    return 2 * (abs(covariance[0, 1]) / (2 * q**1.5) + 3 * p * covariance[1, 1] / (8 * q**2.5))


def test_value_is_the_loss_to_second_order():
    """`E[loss(W + σE)] = loss(W) + O(σ²)`: the mean of the losses is within `σ²·D·curvature` of the loss itself."""
    values, _ = estimates(*CASES[0])
    np.testing.assert_allclose(values, loss(*problem()), rtol=1e-3)


@pytest.mark.slow
def test_large_population_is_parallel_to_the_gradient():
    """Directions far beyond the number of parameters: the cosine reaches 0.98. Rank 1 is above."""
    pairs, truth = 32768, flat(exact())
    f = eggroll.grad(loss, population=2 * pairs, sigma=SIGMA, rank=4)
    got = flat(f(*problem(), key=KEY))
    cosine = got @ truth / np.linalg.norm(got) / np.linalg.norm(truth)
    expected = np.sqrt(pairs / (pairs - 1 + truth.size))
    assert cosine == pytest.approx(expected, abs=0.01) and cosine > 0.98
