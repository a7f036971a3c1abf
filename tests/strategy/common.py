"""Small problems, and populations written out: what the strategy's tests compare with, in NumPy and float64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eggroll
from eggroll.engine.lowrank import LowRank, is_low_rank
from eggroll.strategy.generation import Generation
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.population import Population

KEY = jax.random.key(0, impl="threefry2x32")
X = jax.device_put(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
Y = jax.device_put(np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32))


def params(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """A dense layer: a kernel that meets a product, and a bias."""
    rng = np.random.default_rng(2)
    return {k: jax.device_put(rng.normal(size=s).astype(dtype)) for k, s in (("kernel", (4, 3)), ("bias", (3,)))}


def loss(p: Any, x: Any, y: Any) -> Any:
    """Mean squared error of the layer."""
    return jnp.mean((x @ p["kernel"] + p["bias"] - y) ** 2)


def fitness(p: Any, x: Any, y: Any) -> Any:
    """The negative loss."""
    return -loss(p, x, y)


def numpy_loss(p: Any, x: Any, y: Any) -> float:
    """The same in float64."""
    kernel, bias, x, y = (np.asarray(a, np.float64) for a in (p["kernel"], p["bias"], x, y))
    return float(np.mean((x @ kernel + bias - y) ** 2))


@functools.cache
def es(population: int = 8, sigma: Any = 0.1, lr: float = 0.1, **options: Any) -> eggroll.ES:
    """An ES under plain gradient descent; one object per settings, so that tests share what it compiles."""
    options.setdefault("optimizer", optax.sgd(lr))
    return eggroll.ES(population=population, sigma=sigma, **options)


def dense(members: eggroll.Members) -> Any:
    """All members' dense parameters: every leaf float64 with a leading axis of members."""
    stacked = jax.vmap(members.materialize)(jnp.arange(len(members)))
    return jax.tree.map(lambda a: np.asarray(a, np.float64), stacked)


def dense_of(plan: Any, p: Any, key: jax.Array, population: int, sigma: float, **options: Any) -> Any:
    """As `dense`, for what `value_and_grad` draws under `key`."""
    generation = Generation(Population(population, **options), plan, as_threefry(key), sigma)

    def one(i: jax.Array) -> Any:
        def form(leaf: Any) -> Any:
            return leaf.dense() if isinstance(leaf, LowRank) else leaf

        return jax.tree.map(form, generation.member(p, i), is_leaf=is_low_rank)

    stacked = jax.jit(jax.vmap(one))(jnp.arange(population))
    return jax.tree.map(lambda a: np.asarray(a, np.float64), stacked)


def row(tree: Any, i: int) -> Any:
    """Member `i` of stacked parameters."""
    return jax.tree.map(lambda a: a[i], tree)


def descent(stacked: Any, base: Any, weights: Any, sigma: float, scales: Any = None) -> Any:
    """`−1/(N·σ)·Σ wᵢ·Eᵢ` with `Eᵢ = (memberᵢ − base)/(σ·c)`, in float64."""
    weights = np.asarray(weights, np.float64)
    scales = jax.tree.map(lambda _: 1.0, base) if scales is None else scales

    def leaf(members: np.ndarray, mean: Any, scale: float) -> np.ndarray:
        noise = (members - np.asarray(mean, np.float64)) / (sigma * scale)
        return -np.tensordot(weights, noise, 1) / (len(weights) * sigma * scale)

    return jax.tree.map(leaf, stacked, base, scales)


def centred(fitness: Any, antithetic: bool = True) -> np.ndarray:
    """The weights of `shaping="none"`: minus the mean, without pairs minus the mean of the others."""
    f = np.asarray(fitness, np.float64)
    return (f - f.mean()) * (1.0 if antithetic else len(f) / (len(f) - 1))


def assert_close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """Same structure; each leaf equal within `tolerance` times its largest magnitude."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max(initial=1e-30))


def assert_same_bits(got: Any, want: Any) -> None:
    """Same structure, shapes, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = _plain(g), _plain(w)
        assert g.shape == w.shape and g.dtype == w.dtype
        assert g.tobytes() == w.tobytes()


def _plain(leaf: Any) -> np.ndarray:
    key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)
