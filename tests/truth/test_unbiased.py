"""The estimate is unbiased where theory says exactly so: on linear and on quadratic functions, whatever sigma.

For `f` of degree two or less and noise of zero mean, unit covariance and a symmetric distribution,
`E[f(W + σE)·E]/σ = ∇f(W)`: the terms of even order vanish by symmetry.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import eggroll
from tests.quick import quickest
from tests.strategy.common import KEY

SIGMA, POPULATION, SEEDS = 0.5, 8, 4096
ALPHA = 1e-6  # chance that a right estimator fails in one configuration, all coordinates together

rng = np.random.default_rng(3)
DATA = {
    "inputs": rng.normal(size=(6, 5)),
    "slope": rng.normal(size=(6, 4)),
    "target": rng.normal(size=(6, 4)),
    "vector": rng.normal(size=7),
}
DATA = {k: jnp.asarray(v, jnp.float32) for k, v in DATA.items()}
PARAMS = {
    k: jnp.asarray(rng.normal(size=s), jnp.float32)
    for k, s in {"linear": (5, 4), "quadratic": (5, 4), "linear_vector": (7,), "quadratic_vector": (7,)}.items()
}


MATRICES = [("^(linear|quadratic)$", "low_rank")]  # so small that dense noise would be fewer numbers at rank 4


def loss(p, d):
    """Linear in two parameters and quadratic in the other two; the matrices meet products."""
    linear = jnp.sum((d["inputs"] @ p["linear"]) * d["slope"]) / 6 + jnp.vdot(d["vector"], p["linear_vector"])
    quadratic = jnp.mean((d["inputs"] @ p["quadratic"] - d["target"]) ** 2)
    return linear + quadratic + jnp.mean((p["quadratic_vector"] - d["vector"]) ** 2)


def exact_gradient():
    p, d = ({k: np.asarray(v, np.float64) for k, v in t.items()} for t in (PARAMS, DATA))
    residual = d["inputs"] @ p["quadratic"] - d["target"]
    return {
        "linear": d["inputs"].T @ d["slope"] / 6,
        "quadratic": 2 * d["inputs"].T @ residual / residual.size,
        "linear_vector": d["vector"],
        "quadratic_vector": 2 * (p["quadratic_vector"] - d["vector"]) / 7,
    }


@functools.cache
def estimates(distribution, antithetic, rank):
    """`[SEEDS, number of parameters]` independent estimates."""
    options = {"rank": rank, "distribution": distribution, "antithetic": antithetic, "rules": MATRICES}
    f = eggroll.grad(loss, population=POPULATION, sigma=SIGMA, **options)
    keys = jax.random.split(jax.random.fold_in(KEY, rank), SEEDS)
    return flat(jax.jit(jax.vmap(lambda key: f(PARAMS, DATA, key=key)))(keys), (SEEDS, -1))


def flat(tree, shape):
    return np.concatenate([np.asarray(a, np.float64).reshape(shape) for a in jax.tree.leaves(tree)], axis=-1)


def bound(samples):
    """Half the width of the confidence interval of each coordinate's mean, Bonferroni over coordinates."""
    quantile = stats.t.ppf(1 - ALPHA / (2 * samples.shape[1]), len(samples) - 1)
    return quantile * samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def along(samples, exact):
    """The estimate's component along the exact gradient, as a share of it: 1 on average, and sharply measured."""
    return (samples @ exact / (exact @ exact))[:, None]


# Every pair of settings.
CONFIGURATIONS = [("rademacher", True, 4), ("rademacher", False, 1), ("normal", True, 1), ("normal", False, 4)]


@pytest.mark.first(2)
@pytest.mark.parametrize(("distribution", "antithetic", "rank"), CONFIGURATIONS)
def test_mean_of_the_estimates_is_the_gradient(distribution, antithetic, rank):
    samples, exact = estimates(distribution, antithetic, rank), flat(exact_gradient(), (-1,))
    miss = np.abs(samples.mean(axis=0) - exact) / bound(samples)
    assert miss.max() <= 1, f"off by {miss.max():.2f} times the bound in coordinate {miss.argmax()}"
    share = along(samples, exact)
    assert abs(share.mean() - 1) <= bound(share)[0]


@pytest.mark.parametrize("distribution", quickest(["rademacher", "normal"], "rademacher"))
def test_the_bound_would_notice_the_usual_mistakes(distribution):
    exact = flat(exact_gradient(), (-1,))
    single = along(estimates(*next(c for c in CONFIGURATIONS if c[:2] == (distribution, False))), exact)
    # Centring on a mean that holds the member itself loses one part in N.
    assert abs(single.mean() * (POPULATION - 1) / POPULATION - 1) > bound(single)[0]
    paired = along(estimates(*next(c for c in CONFIGURATIONS if c[:2] == (distribution, True))), exact)
    for factor in (SIGMA, 2**0.5, 0.5, 2.0, POPULATION / (POPULATION - 1)):  # sigma, rank, pairs, N − 1
        assert abs(paired.mean() * factor - 1) > bound(paired * factor)[0]


def test_every_matrix_got_low_rank_noise():
    plan = eggroll.explain(loss, PARAMS, DATA, rank=4, rules=MATRICES).plan
    kinds = {leaf.path: (leaf.kind, leaf.rank) for leaf in plan.leaves}
    assert kinds == {
        "linear": ("low_rank", 4),
        "quadratic": ("low_rank", 4),
        "linear_vector": ("dense", 0),
        "quadratic_vector": ("dense", 0),
    }
