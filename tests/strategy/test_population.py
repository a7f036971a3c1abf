"""Populations: settings that fit together, chunks with and without a remainder, averages of auxiliary output."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import eggroll
from eggroll.strategy.population import Population
from tests.quick import quickest
from tests.strategy.common import KEY, X, Y, assert_close, dense, es, fitness, loss, numpy_loss, params, row


def test_units_and_signs():
    paired, single = Population(12), Population(12, antithetic=False)
    assert (paired.signs, paired.units, single.signs, single.units) == (2, 6, 1, 12)


def test_numbers_from_numpy():
    population = Population(np.int64(12), groups=np.int32(2), chunk=np.uint8(4))
    assert population == Population(12, groups=2, chunk=4)
    assert all(type(n) is int for n in (population.size, population.groups, population.chunk))
    strategy = eggroll.ES(population=np.int64(6), rank=np.int64(1), noise_reuse=np.int64(2))
    assert len(strategy.ask(strategy.init(params(), KEY))) == 6


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"size": 7},
            r"got population=7 with antithetic pairs; an even population is required. Use 8, or antithetic=False",
        ),
        ({"size": 0}, "got population=0; an integer of at least 2"),
        ({"size": 0, "antithetic": False}, "got population=0; an integer of at least 1"),
        ({"size": 8.0}, "got population=8.0; an integer"),
        ({"size": True, "antithetic": False}, "got population=True; an integer"),
        ({"size": 4, "antithetic": "no"}, "got antithetic='no'; True or False is required"),
        ({"size": "8"}, "got population='8'; an integer"),
        ({"size": 8, "groups": 3}, r"got groups=3, which must divide population=8"),
        ({"size": 8, "groups": 8}, r"got groups=8, which must divide .* even number of members, so that pairs stay"),
        ({"size": 8, "groups": 0}, "got groups=0; an integer of at least 1"),
        ({"size": 8, "chunk": 0}, "got chunk=0; an integer of at least 1"),
        ({"size": 8, "distribution": "uniform"}, "got distribution='uniform'; one of 'rademacher', 'normal'"),
        ({"size": 8, "fallback": "ignore"}, "fallback='ignore'; one of 'warn', 'allow', 'error'"),
    ],
)
def test_settings_that_do_not_fit_together(settings, text):
    with pytest.raises(ValueError, match=text):
        Population(**settings)


def test_a_mesh_needs_the_axis_and_an_even_split():
    with pytest.raises(ValueError, match=r"got a mesh with axes \('data',\); a mesh with an axis named \"population\""):
        Population(8, mesh=Mesh(np.array(jax.devices()[:1]), ("data",)))

    class Two:
        shape = {"population": 2}  # noqa: RUF012

    with pytest.raises(ValueError, match="got 3 pairs for 2 devices; the population must split evenly"):
        Population(6, mesh=Two())
    with pytest.raises(ValueError, match="got 3 members for 2 devices"):
        Population(3, antithetic=False, mesh=Two())


@pytest.mark.parametrize(
    ("population", "chunk", "antithetic"), quickest([(10, 4, True), (7, 2, False), (2, 64, True)], (10, 4, True))
)
def test_every_member_is_evaluated_once_and_in_order(population, chunk, antithetic):
    strategy = es(population, chunk=chunk, antithetic=antithetic)
    members = strategy.ask(strategy.init(params(), KEY))
    got = members.apply(fitness, X, Y)
    stacked = dense(members)
    expected = [-numpy_loss(row(stacked, i), X, Y) for i in range(population)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len(set(expected)) == population
    base = jax.tree.map(lambda a: np.asarray(a, np.float64), params())
    if antithetic:
        for name in base:
            plus, minus = stacked[name][0::2] - base[name], stacked[name][1::2] - base[name]
            np.testing.assert_allclose(plus, -minus, atol=1e-6)


def fitness_with_aux(p, x, y):
    """It is not finite where the first weight is below its mean."""
    shift = p["kernel"][0, 0] - params()["kernel"][0, 0]
    value = jnp.where(shift < 0, jnp.nan, -loss(p, x, y))
    count = (1000 * p["kernel"] * jnp.arange(12.0).reshape(4, 3)).sum().astype(jnp.int32)
    return value, {
        "mean": p["bias"],
        "half": p["bias"].astype(jnp.bfloat16),
        "count": count,
        "flag": shift > 0,
        "wave": jax.lax.complex(shift, shift),
        "shared": x.shape[0] + jnp.int32(2**30 + 1),  # float32 does not hold it
        "key": jax.random.fold_in(KEY, 3),
        "none": None,
    }


@pytest.mark.parametrize("chunk", quickest([3, 10, "full rank"], 3))
def test_auxiliary_output_is_averaged_over_finite_members_or_what_they_share(chunk):
    population = 10
    if chunk == "full rank":
        strategy = eggroll.FullRankES(population=population, sigma=0.1)
    else:
        strategy = es(population, antithetic=False, chunk=chunk, fallback="allow")
    state = strategy.init(params(), KEY)
    members = strategy.ask(state)
    stacked = jax.tree.map(lambda *x: np.float64(x), *map(members.materialize, range(population)))
    _, metrics = strategy.step(state, fitness_with_aux, X, Y, has_aux=True)
    aux = metrics["aux"]
    finite = stacked["kernel"][:, 0, 0] > np.asarray(params()["kernel"], np.float64)[0, 0]
    assert 0 < finite.sum() < population and metrics["nonfinite"] == (~finite).sum()
    np.testing.assert_allclose(aux["mean"], stacked["bias"][finite].mean(0), rtol=1e-5)
    assert aux["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(aux["half"].astype(jnp.float32), stacked["bias"][finite].mean(0), rtol=0.02)
    counts = (1000 * stacked["kernel"] * np.arange(12).reshape(4, 3)).sum((1, 2))
    assert aux["count"].dtype == aux["flag"].dtype == jnp.float32
    np.testing.assert_allclose(aux["count"], counts[finite].mean(), atol=1)  # each is cut off
    assert aux["flag"] == 1 and aux["none"] is None  # of those that count
    np.testing.assert_allclose(
        aux["wave"].real, stacked["kernel"][finite, 0, 0].mean() - params()["kernel"][0, 0], rtol=1e-3
    )
    assert aux["shared"].dtype == jnp.int32 and aux["shared"] == len(X) + 2**30 + 1
    assert aux["key"] == jax.random.fold_in(KEY, 3)
    with pytest.raises(TypeError, match="the output 'key' of random keys that differ among members"):
        strategy.step(
            state,
            lambda p, x, y: (-loss(p, x, y), {"key": jax.random.fold_in(KEY, p["bias"][0] > 0)}),
            X,
            Y,
            has_aux=True,
        )


def test_members_count_in_the_average_when_the_loss_is_an_integer():
    """A loss without a floating-point value cannot be infinite: all members count."""

    def loss_fn(p):
        return jnp.sum(p["w"] > 0, dtype=jnp.int32), p["w"]

    f = eggroll.value_and_grad(loss_fn, population=6, sigma=0.5, has_aux=True, chunk=2)
    (value, mean), grads = f({"w": jnp.ones((3,))}, key=KEY)
    np.testing.assert_allclose(mean, np.ones(3), atol=1e-6)
    assert value.dtype == jnp.float32 and float(value) == 3.0 and grads["w"].dtype == jnp.float32


def sine(p, x):
    return jnp.mean((x @ jnp.sin(p["kernel"] + p["kernel"] @ jnp.eye(3))) ** 2)


@pytest.mark.parametrize("chunk", quickest([4, 10], 4))
def test_a_dense_fallback_is_reported_once_however_often_it_is_traced(chunk):
    only_kernel = {"kernel": params()["kernel"]}
    with pytest.warns(eggroll.DenseFallbackWarning, match="whole population of 10") as caught:
        f = eggroll.value_and_grad(sine, population=10, sigma=0.1, chunk=chunk)
        first = f(only_kernel, X, key=KEY)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # compiled: not traced again
        f(only_kernel, X, key=KEY)
        allowed = eggroll.value_and_grad(sine, population=10, sigma=0.1, chunk=chunk, fallback="allow")
        assert_close(allowed(only_kernel, X, key=KEY), first, 1e-6)
    with pytest.raises(eggroll.DenseFallbackError, match="'kernel' is made dense for `sin`"):
        eggroll.value_and_grad(sine, population=10, sigma=0.1, chunk=chunk, fallback="error")(only_kernel, X, key=KEY)


def test_no_tracer_outlives_its_trace():
    with jax.checking_leaks():
        eggroll.value_and_grad(loss, population=6, sigma=0.1, chunk=4)(params(), X, Y, key=KEY)
