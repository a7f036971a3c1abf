"""A distribution that no kernel knows: XLA draws it everywhere, kernels refuse it, nothing takes it for normal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from bench.tools.linear import Layer
from eggroll.kernels.gpu_lowrank_dot import lowrank_dot_gpu
from eggroll.kernels.gpu_noise import times
from eggroll.kernels.gpu_rank_update import rank_update_gpu
from eggroll.kernels.tpu_lowrank_dot import lowrank_dot_tpu
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from eggroll.ops.noise import DISTRIBUTIONS, Distribution, unpack, unpack_flat, words_for
from eggroll.ops.operations import rank_update
from eggroll.ops.seeded import Seeded
from eggroll.strategy.noise.dense import noise_block

STEP = np.float32((12 / (2**16 - 1)) ** 0.5)  # between 256 numbers of unit variance
LARGEST = float(127.5 * STEP)


def numbers(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    return ((bits.astype(jnp.float32) - 127.5) * STEP).astype(dtype)


@pytest.fixture(autouse=True)
def uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISTRIBUTIONS, "uniform", Distribution("uniform", 8, numbers))


def seeded(seed: int, members: int, size: int, dtype: str = "float32") -> Seeded:
    return Seeded(jax.random.bits(jax.random.key(seed), (members, 2), "uint32"), size, 2, "uniform", dtype)


def test_words_become_its_numbers():
    words = jax.random.bits(jax.random.key(0), (words_for(101, "uniform"),), "uint32")
    assert words.shape == (26,)
    truth = (np.asarray(words).astype("<u4").view(np.uint8)[:101] - 127.5) * STEP
    np.testing.assert_allclose(unpack(words, (101,), "uniform", "float32"), truth, rtol=1e-6)
    np.testing.assert_array_equal(
        unpack_flat(words, 101, "uniform", "float32"), unpack(words, (101,), "uniform", "float32")
    )
    with pytest.raises(TypeError, match="int8 for uniform noise; a floating-point dtype"):
        unpack(words, (101,), "uniform", "int8")


def test_all_draws_are_of_it():
    """Normal noise, of so many numbers, has some beyond the largest that this one has."""
    drawn = seeded(1, 64, 40).array()
    dense = noise_block(jnp.array([1, 2], "uint32"), 0, 4096, "uniform", "float32")
    for sample in (drawn, dense):
        values = np.asarray(sample).ravel()
        assert abs(values).max() <= LARGEST and len(np.unique(values)) == 256
        assert abs((values**2).mean() - 1) <= 5 * (0.8 / len(values)) ** 0.5  # E x⁴ = 9/5
    assert seeded(1, 4, 5, "bfloat16").astype("float32").dtype == jnp.float32
    cast = seeded(1, 4, 5).astype("bfloat16")
    assert isinstance(cast, Seeded)
    np.testing.assert_array_equal(cast.array(), seeded(1, 4, 5).array().astype("bfloat16"))


def refused() -> dict[str, Any]:
    weights, left, right = jnp.ones(4), seeded(3, 4, 128), seeded(4, 4, 128)
    x, w = jnp.ones((4, 8, 128), "bfloat16"), jnp.ones((128, 128), "bfloat16")
    half = replace(left, dtype="bfloat16"), replace(right, dtype="bfloat16")
    return {
        "dot on Hopper": lambda: lowrank_dot_gpu(x, w, *half),
        "update on Hopper": lambda: rank_update_gpu(weights, left, right),
        "product on Hopper": lambda: times(jnp.ones((64, 64)), jnp.ones((64, 64), "uint32"), left),
        "dot on TPUs": lambda: lowrank_dot_tpu(x, w, *half),
        "update on TPUs": lambda: rank_update_tpu(weights, left, right),
    }


@pytest.mark.parametrize(
    "kernel", ["dot on Hopper", "update on Hopper", "product on Hopper", "dot on TPUs", "update on TPUs"]
)
def test_kernels_refuse_it_so_that_the_reference_does_it(kernel):
    with pytest.raises(NotImplementedError, match="uniform noise: rademacher or normal"):
        refused()[kernel]()


def test_benchmarks_measure_it_or_refuse_it():
    left, right = Layer(16, 64, "float32", distribution="uniform").factors
    assert all(2 < len(np.unique(each)) <= 256 and abs(np.asarray(each)).max() <= LARGEST for each in (left, right))
    with pytest.raises(ValueError, match="distribution='cauchy'"):
        _ = Layer(16, 64, "float32", distribution="cauchy").factors


def test_parts_of_bfloat16_hold_its_numbers():
    """One part would do for ±1: it would lose 16 of the 24 bits of these."""
    weights, left, right = jax.random.normal(jax.random.key(5), (40,)), seeded(6, 40, 30), seeded(7, 40, 50)
    truth = np.einsum("u,uir,ujr->ij", *(np.asarray(x, np.float64) for x in (weights, left.array(), right.array())))
    for implementation in ("xla_parts", "reference"):
        np.testing.assert_allclose(rank_update(weights, left, right, implementation=implementation), truth, atol=1e-4)


STRATEGIES = [(eggroll.ES, {"optimizer": optax.adam(0.1)}), (eggroll.FullRankES, {"learning_rate": 0.1})]


@pytest.mark.first(1)
@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_strategies_train_with_it(strategy, options):
    es = strategy(population=64, sigma=0.1, distribution="uniform", **options)
    x = jnp.eye(6)

    def fitness(params: Any, x: jax.Array) -> jax.Array:
        return -jnp.mean((x @ params["w"] - 1.0) ** 2)

    state = es.init({"w": jnp.zeros((6, 4))}, jax.random.key(0))
    noise = np.asarray(es.ask(state).materialize(0)["w"]) / 0.1
    largest = LARGEST**2 if strategy is eggroll.ES else LARGEST  # of a product of two numbers, or of one
    assert 0 < abs(noise).max() <= largest * (1 + 1e-5)
    for _ in range(40):
        state, _ = es.step(state, fitness, x)
    assert fitness(state.params, x) > -0.1
