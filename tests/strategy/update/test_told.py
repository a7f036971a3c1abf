"""Fitness of the host: any offset and any scale, in float64; and what is said where members do not differ."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from tests.quick import quickest
from tests.strategy.common import KEY, assert_same_bits
from tests.strategy.random_search import RandomSearch

N = 12
START = {"w": jnp.zeros(3)}
STRATEGIES = {
    "eggroll": lambda **options: eggroll.ES(population=N, sigma=0.1, optimizer=optax.sgd(0.05), **options),
    "full rank": lambda **options: eggroll.FullRankES(population=N, sigma=0.1, learning_rate=0.05, **options),
    "random search": lambda **options: RandomSearch(population=N, sigma=0.1, **options),
}


def costs(members):
    outputs = np.asarray(members.apply(lambda p: p["w"]), np.float64)
    return ((outputs - [1.0, -1.0, 0.5]) ** 2).sum(1)


def trained(es, convert, generations=3):
    state = es.init(START, KEY)
    for _ in range(generations):
        members = es.ask(state)
        fitness = [convert(cost) for cost in costs(members)]
        state, metrics = es.tell(state, members, fitness)
    return np.asarray(state.params["w"], np.float64), fitness, metrics


@pytest.mark.parametrize("name", quickest(STRATEGIES, "eggroll", "random search"))
def test_an_offset_costs_nothing_and_nothing_finite_is_too_large(name):
    es = STRATEGIES[name]()
    plain, _, _ = trained(es, lambda cost: -cost)
    assert np.abs(plain).min() > 0.01
    for scale, offset in ((1, 1e12), (1e40, 0)):
        found, fitness, metrics = trained(es, lambda cost, scale=scale, offset=offset: -scale * (offset + cost))
        np.testing.assert_allclose(found, plain, rtol=1e-6, atol=1e-3 * (offset == 1e12) + 1e-6)
        expected = {"mean": np.mean(fitness), "best": max(fitness), "worst": min(fitness), "std": np.std(fitness)}
        for which, value in expected.items():
            # A sum of N numbers in float64 is as right as the last bits of their magnitude.
            tolerance = N * np.spacing(abs(max(fitness, key=abs)))
            np.testing.assert_allclose(metrics[f"fitness_{which}"], value, rtol=1e-12, atol=tolerance, err_msg=which)
        np.testing.assert_array_equal(metrics["fitness"], fitness)
        assert metrics["weights"].dtype == np.float32 and metrics["nonfinite"] == 0


def plain_callable(fitness):
    return fitness - fitness.max()


@pytest.mark.parametrize(
    "shaping", quickest(["none", "group", "centered_rank", "sign", plain_callable], "none", "group")
)
def test_every_shaping_sees_the_scores(shaping):
    es = STRATEGIES["full rank"](shaping=shaping, groups=3)
    state = es.init(START, KEY)
    values = np.random.default_rng(0).permutation(N) / 1024  # exact beside the offset
    expected = es.tell(state, es.ask(state), values)[1]["weights"]
    offset = 2.0**40 + 1
    for given in (values + offset, [Fraction(v) + 2**40 + 1 for v in values], [Decimal(v) + 2**40 + 1 for v in values]):
        found = es.tell(state, es.ask(state), given)[1]["weights"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    integers = es.tell(state, es.ask(state), jnp.int32(2**30) + jnp.int32(values * 1024))[1]
    np.testing.assert_array_equal(np.argsort(integers["weights"], stable=True), np.argsort(expected, stable=True))


def test_raw_weights_that_updates_do_not_hold():
    es = STRATEGIES["eggroll"](shaping="none")
    state = es.init(START, KEY)
    with pytest.raises(FloatingPointError, match=r"as large as 1.2e\+41, .*beyond the range of float32.*zscore"):
        es.tell(state, es.ask(state), [1e40 * (i + 1) for i in range(N)])
    for text, given in (
        ("beyond float64", [10**400 + i for i in range(N)]),
        ("beyond float64", [Decimal("1e400")] * N),
        ("beyond float64", [Fraction(10**400, i + 1) for i in range(N)]),
    ):
        with pytest.raises(ValueError, match=text):
            es.tell(state, es.ask(state), given)
    with pytest.warns(UserWarning, match="12 different scores, of which float64 tells 1 apart"):
        es.tell(state, es.ask(state), [2**60 + i for i in range(N)])


def test_under_jit_scores_of_the_host_are_as_wide():
    es = STRATEGIES["eggroll"]()
    state = es.init(START, KEY)

    def told(state):
        return es.tell(state, es.ask(state), [1e12 + i for i in range(N)])

    found, metrics = jax.jit(told)(state)
    expected, _ = told(state)
    assert_same_bits(found.params, expected.params)
    np.testing.assert_allclose(metrics["fitness_std"], np.arange(N).std(), rtol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_fitness_is_told_and_said_once(name):
    es = STRATEGIES[name]()
    state = es.init(START, KEY)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for generation in range(8):
            if generation % 2:
                state, metrics = es.tell(state, es.ask(state), [1e8] * N)
            else:
                state, metrics = es.step(state, lambda p: jnp.float32(1e8) + p["w"].sum())
            assert bool(metrics["equal_fitness"]) and metrics["fitness_mean"] == 1e8
            assert len(said) == (generation >= 4)
    assert "equal fitness (1e+08) from all 12 members in 5 generations in a row" in str(said[0].message)
    assert "float32, which near 1e+08 knows steps of 8 alone" in str(said[0].message)
    state, metrics = es.tell(state, es.ask(state), np.arange(N))
    assert not metrics["equal_fitness"]


def test_metrics_are_a_dictionary_in_a_users_own_loops():
    es = STRATEGIES["eggroll"]()

    def step(carry, _):
        return es.step(carry[0], lambda p: -((p["w"] - 1) ** 2).sum()), None

    first = es.step(es.init(START, KEY), lambda p: -((p["w"] - 1) ** 2).sum())
    zeros = first[0], jax.tree.map(jnp.zeros_like, first[1])
    (_, metrics), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=2))(zeros)
    assert type(metrics) is dict and metrics["generation"] == first[1]["generation"] + 2


def test_equal_pairs_are_said_too():
    es = STRATEGIES["eggroll"]()
    state = es.init(START, KEY)
    with pytest.warns(UserWarning, match="a gradient of zero from the fitness of 12 members in 5 generations in a row"):
        for _ in range(5):
            state, metrics = es.tell(state, es.ask(state), np.arange(N) // 2)
    assert not metrics["equal_fitness"]
