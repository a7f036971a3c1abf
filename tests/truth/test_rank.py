"""The perturbation `E = A·Bᵀ/√r` has the moments of theory, which become the Gaussian's as the rank grows.

With `m₄ = E[a⁴]` (1 for rademacher, 3 for normal factors) and distinct rows `i, p` and columns `j, q`:

    E[E_ij]             = 0,                      Gaussian 0
    E[E_ij²]            = 1,                      Gaussian 1
    E[E_ij⁴]            = 3 + (m₄² − 3)/r,        Gaussian 3
    E[E_ij²·E_iq²]      = 1 + (m₄ − 1)/r,         Gaussian 1
    E[E_ij²·E_pq²]      = 1,                      Gaussian 1
    E[E_ij·E_iq·E_pj·E_pq] = 1/r,                 Gaussian 0
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.quick import quickest
from tests.strategy.common import KEY, es

SHAPE, PAIRS = (20, 24), 1024
FOURTH = {"rademacher": 1.0, "normal": 3.0}
RANKS = (1, 4, 20)  # 20 is full rank
ALPHA = 1e-6  # chance that a right implementation fails, all statistics of one test together


@functools.cache
def noise(distribution, rank):
    """`[PAIRS, *SHAPE]`: the perturbations of the first of every pair, in units of sigma; rank None is dense noise."""
    rules = (("w", "dense" if rank is None else "low_rank"),)  # at full rank, too, where dense noise is cheaper
    strategy = es(2 * PAIRS, 0.5, rank=rank or 1, distribution=distribution, rules=rules)
    members = strategy.ask(strategy.init({"w": jnp.zeros(SHAPE)}, KEY))
    drawn = jax.vmap(members.materialize)(2 * jnp.arange(PAIRS))["w"]
    return np.asarray(drawn, np.float64) / 0.5


@functools.cache
def statistics(distribution, rank):
    """`[PAIRS]` averages over entries of one member, by the name of the moment."""
    e = noise(distribution, rank)
    shifted = np.roll(e, 1, axis=2)  # the same row, another column
    even, odd = e[:, 0::2], e[:, 1::2]  # distinct rows
    even_shifted, odd_shifted = shifted[:, 0::2], shifted[:, 1::2]
    return {
        "first": e.mean((1, 2)),
        "second": (e**2).mean((1, 2)),
        "fourth": (e**4).mean((1, 2)),
        "same row": (e**2 * shifted**2).mean((1, 2)),
        "apart": (even**2 * odd_shifted**2).mean((1, 2)),
        "rectangle": (even * even_shifted * odd * odd_shifted).mean((1, 2)),
    }


def closed_form(distribution, rank):
    m4, over = FOURTH[distribution], 0.0 if rank is None else 1.0 / rank
    fourth = 3 + (m4**2 - 3) * over if rank else m4
    apart = {"second": 1.0, "apart": 1.0, "first": 0.0}
    return apart | {"fourth": fourth, "same row": 1 + (m4 - 1) * over, "rectangle": over}


def bound(samples):
    """Bonferroni over six moments; a floor for the rounding of float32 where nothing varies."""
    quantile = stats.norm.ppf(1 - ALPHA / 12)
    return quantile * samples.std(ddof=1) / np.sqrt(len(samples)) + 1e-5


@pytest.mark.first(2)
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("rank", [*RANKS, None])
def test_moments_are_those_of_theory(distribution, rank):
    expected = closed_form(distribution, rank)
    for name, samples in statistics(distribution, rank).items():
        assert abs(samples.mean() - expected[name]) <= bound(samples), name


@pytest.mark.parametrize("distribution", quickest(["rademacher", "normal"], "rademacher"))
def test_moments_approach_the_gaussian_as_one_over_the_rank(distribution):
    """Each rank's distance from the Gaussian is measured apart from the next rank's: the bound is sharp enough."""
    gaussian = closed_form("normal", None)
    for name in ("fourth", "rectangle"):
        distance, error = {}, {}
        for rank in RANKS:
            samples = statistics(distribution, rank)[name]
            distance[rank], error[rank] = abs(samples.mean() - gaussian[name]), bound(samples)
        for low, high in itertools.pairwise(RANKS):
            assert distance[high] + error[high] < distance[low] - error[low], (name, distance, error)
        scaled = np.array([distance[r] * r for r in RANKS])
        assert np.all(np.abs(scaled - scaled[0]) <= [error[1] + error[r] * r for r in RANKS])


def test_rank_of_the_perturbation_is_the_rank():
    for rank in RANKS:
        spectrum = np.linalg.svd(noise("normal", rank)[0], compute_uv=False)
        assert np.sum(spectrum > 1e-4 * spectrum[0]) == rank


def test_frobenius_norm_of_rademacher_noise_of_rank_one_is_constant():
    np.testing.assert_allclose((noise("rademacher", 1) ** 2).sum((1, 2)), np.prod(SHAPE), rtol=1e-6)
    assert (noise("normal", 1) ** 2).sum((1, 2)).std() > 0.1 * np.prod(SHAPE)
