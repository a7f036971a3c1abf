"""The learning-rate conversion table: each codebase's published update, written out on dense members, and ours.

With `Eᵢ` of unit variance per entry (`A·Bᵀ/√r`, or dense noise) and `zᵢ` the shaped fitness, `W` moves by

    eggroll, optax.sgd(η)                     η/(N·σ)·Σ zᵢ·Eᵢ
    OpenAI-ES (arXiv 1703.03864, Alg. 1)      α/(N·σ)·Σ Fᵢ·Eᵢ              η = α
    EGGROLL, HyperscaleES                     α·√N·(1/N)·Σ zᵢ·(σ·Eᵢ)       η = α·√N·σ²
    eggroll-vllm                              α/(N·σ)·Σ fᵢ·(σ·Eᵢ)          η = α·σ   (with its √N option: α·√N·σ)
    ES for LLMs (arXiv 2509.24372)            α·(1/N)·Σ zᵢ·Eᵢ              η = α·σ, and σ²/2 with its α = σ/2

All of these are plain ascent. Under an optimizer that divides by the gradient's size (Adam) the factor cancels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from tests.strategy.common import KEY, assert_close, dense

N, SIGMA, ALPHA = 16, 0.02, 0.3
PARAMS = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32), "bias": jnp.ones(3)}
RAW = np.random.default_rng(1).normal(size=N) * 1e3 + 50  # rewards so large that no code's epsilon is seen
BASE = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS)
TOLERANCE = 1e-4  # float32 weights of size 1, noise of size 0.02


def ours(learning_rate, shaping, optimizer=None, groups=1, **noise_options):
    """(our update, the members' noise `Eᵢ`, both by parameter and in float64)."""
    optimizer = optimizer or optax.sgd(learning_rate)
    es = eggroll.ES(population=N, sigma=SIGMA, optimizer=optimizer, shaping=shaping, groups=groups, **noise_options)
    state = es.init(PARAMS, KEY)
    new, _ = es.tell(state, es.ask(state), RAW)
    update = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, new.params, BASE)
    return update, noise(**noise_options)


@functools.cache
def noise(**options):
    """`Eᵢ` by parameter, from the members' dense parameters."""
    es = eggroll.ES(population=N, sigma=SIGMA, **options)
    members = dense(es.ask(es.init(PARAMS, KEY)))
    return jax.tree.map(lambda m, b: (m - b) / SIGMA, members, BASE)


def weighted(weights, noise):
    return jax.tree.map(lambda e: np.tensordot(weights, e, 1), noise)


def scaled(factor, tree):
    return jax.tree.map(lambda a: factor * a, tree)


def zscores(rewards, epsilon_in_variance=0.0, epsilon=0.0):
    return (rewards - rewards.mean()) / (np.sqrt(rewards.var() + epsilon_in_variance) + epsilon)


def test_openai_es():
    """`θ ← θ + α·(1/(nσ))·Σ Fᵢ·εᵢ`; the mean of F only adds variance with pairs, whose noise sums to zero."""
    got, drawn = ours(ALPHA, "none")
    assert_close(got, scaled(ALPHA / (N * SIGMA), weighted(RAW, drawn)), TOLERANCE)


@pytest.mark.first(1)
@pytest.mark.parametrize("rank", [1, 3])
def test_hyperscalees(rank):
    """Its noise carries sigma, its gradient is the mean over members times √N, its scores are z-scores."""
    got, drawn = ours(ALPHA * np.sqrt(N) * SIGMA**2, "zscore", rank=rank)
    gradient = scaled(-np.sqrt(N) / N, weighted(zscores(RAW, epsilon_in_variance=1e-5), scaled(SIGMA, drawn)))
    assert_close(got, scaled(-ALPHA, gradient), TOLERANCE)


def test_hyperscalees_groups():
    """With groups: the group's mean, and the standard deviation of all."""
    got, drawn = ours(ALPHA * np.sqrt(N) * SIGMA**2, "group", groups=4)
    grouped = RAW.reshape(4, -1)
    scores = ((grouped - grouped.mean(1, keepdims=True)) / np.sqrt(RAW.var() + 1e-5)).ravel()
    gradient = scaled(-np.sqrt(N) / N, weighted(scores, scaled(SIGMA, drawn)))
    assert_close(got, scaled(-ALPHA, gradient), TOLERANCE)


@pytest.mark.slow
def test_eggroll_vllm():
    """`√σ` in either factor, so that the `1/σ` of the update cancels; centred fitness, differences of pairs."""
    root = np.sqrt(N)  # of its option, without which it is a factor less on both sides
    got, drawn = ours(ALPHA * root * SIGMA, "none", rank=2)
    centred = RAW - RAW.mean()
    differences = centred[0::2] - centred[1::2]
    first_of_pair = jax.tree.map(lambda e: SIGMA * e[0::2], drawn)
    assert_close(got, scaled(ALPHA * root / (N * SIGMA), weighted(differences, first_of_pair)), TOLERANCE)


@pytest.mark.slow
def test_es_for_language_models():
    """Full-rank Gaussian noise without pairs, `θ ← θ + α·(1/N)·Σ Zₙ·εₙ`."""
    options = {"antithetic": False, "distribution": "normal", "rules": ((".*", "dense"),)}
    got, drawn = ours(ALPHA * SIGMA, "zscore", **options)
    assert_close(got, scaled(ALPHA / N, weighted(zscores(RAW, epsilon=1e-8), drawn)), TOLERANCE)
    assert np.linalg.matrix_rank(drawn["kernel"][0]) == 4


@pytest.mark.slow
def test_adam_takes_any_codebases_learning_rate():
    """The first update of Adam is `α·sign(g)` at any scale of `g`, up to its epsilon."""
    plain, _ = ours(None, "zscore", optimizer=optax.adam(ALPHA, eps=1e-20))
    factor = np.sqrt(N) * SIGMA**2
    rescaled = optax.chain(optax.scale(factor), optax.adam(ALPHA, eps=1e-20))
    got, _ = ours(None, "zscore", optimizer=rescaled)
    assert_close(got, plain, TOLERANCE)
    assert np.abs(plain["kernel"]).min() > 0.99 * ALPHA
