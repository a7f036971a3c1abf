"""Sigma and learning rate that choose themselves: by a closed form, by every way in, and refused where they cannot."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll
import eggroll.nnx
from eggroll.strategy.update.bearing import widest
from eggroll.training import RunError, Saving, Scored, fit, named, replay
from tests.strategy.common import KEY

AUTO = {"sigma": "auto", "learning_rate": "auto"}
SLOPE, CURVE = 3.0, 2.0


def start(size=1.0):
    return {"w": jnp.full((16, 8), size), "b": jnp.full((8,), size)}


def fitness(p, size=1.0, scale=1.0, offset=0.0):
    """For each number `SLOPE·x − CURVE·x²` of the change x: noise of ±σ spreads `SLOPE·σ·√D` and costs `CURVE·σ²·D`."""
    moved = [(x / size - 1.0).ravel() for x in jax.tree.leaves(p)]
    x = jnp.concatenate(moved)
    return offset + scale * jnp.sum(SLOPE * x - CURVE * x**2)


BEST = SLOPE / (2 * CURVE * np.sqrt(16 * 8 + 8))  # of the worth SLOPE·√D·σ − CURVE·D·σ²


@pytest.mark.parametrize(("size", "scale", "offset"), [(1e-3, 1e3, 1e4), (50.0, 1e-3, -1.0)])
def test_sigma_is_that_of_the_closed_form_whatever_the_units(size, scale, offset):
    es = eggroll.ES(population=128, rules=[("b", "dense")], **AUTO)
    state = es.init(start(size), KEY)
    es.choose(state, lambda members: members.apply(lambda p: fitness(p, size, scale, offset)))
    assert BEST / 2 <= es.sigma / size <= BEST * 2
    assert es.learning_rate == pytest.approx(0.4 * es.sigma)
    state, metrics = es.step(state, lambda p: fitness(p, size, scale, offset))
    assert float(metrics["sigma"]) == pytest.approx(es.sigma)
    assert es.undecided == ()


def test_all_ways_in_choose_the_same_and_learn():
    def loss(p, x):
        return jnp.mean((x @ p["w"] + p["b"] - 1.5) ** 2)

    x = jnp.eye(16)
    by_step = eggroll.ES(population=64, **AUTO)
    state = by_step.init(start(), KEY)
    for _ in range(60):
        state, _ = by_step.step(state, lambda p, x: -loss(p, x), x)
    asked = eggroll.ES(population=64, **AUTO)
    asked.choose(asked.init(start(), KEY), lambda members: -members.apply(loss, x))
    fitted = eggroll.ES(population=64, **AUTO)
    fit(fitted, fitted.init(start(), KEY), lambda p, x: -loss(p, x), lambda _: x, generations=1)
    scored = eggroll.ES(population=64, **AUTO)
    fit(scored, scored.init(start(), KEY), Scored(loss, lambda y, x: -float(y)), iter([x]), generations=1)
    assert by_step.sigma == asked.sigma == fitted.sigma == scored.sigma
    assert loss(state.params, x) < 0.05 * loss(start(), x)


def test_models_gradients_and_full_rank_choose_too():
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    es = eggroll.nnx.ES(population=64, **AUTO)
    es.step(es.init(model, KEY), lambda model, x: -jnp.mean((model(x) - 1) ** 2), jnp.eye(16))
    assert 0 < es.sigma < 10
    full = eggroll.FullRankES(population=32, **AUTO)
    _, metrics = full.step(full.init(start(), KEY), fitness)
    assert BEST / 3 <= full.sigma <= BEST * 3
    assert full.learning_rate == pytest.approx(0.4 * full.sigma * np.sqrt(32))
    assert float(metrics["update_norm"]) == pytest.approx(0.4 * full.sigma * np.sqrt(136), rel=0.5)
    call = eggroll.value_and_grad(lambda p: -fitness(p), population=64, sigma="auto")
    with pytest.raises(ValueError, match="under jit before anything has chosen it"):
        jax.jit(call)(start(), key=KEY)
    value, grads = call(start(), key=KEY)
    assert float(jnp.vdot(grads["w"], jnp.full((16, 8), -SLOPE))) > 0
    assert jnp.isclose(jax.jit(call)(start(), key=KEY)[0], value)


def test_noise_on_activations_has_the_rate_of_a_gradient():
    es = eggroll.ES(population=32, noise="activations", **AUTO)
    es.step(es.init({"w": jnp.full((4, 3), 0.5)}, KEY), lambda p, x: -((jnp.tanh(x @ p["w"])) ** 2).sum(-1), jnp.eye(4))
    assert es.learning_rate == pytest.approx(0.03 * 0.5)


def test_a_run_in_a_folder_resumes_and_replays_with_what_was_chosen(tmp_path):
    def made():
        es = eggroll.ES(population=16, optimizer=lambda rate: named("adam", learning_rate=rate), **AUTO)
        return es, es.init(start(), KEY)

    def run(folder, generations, **more):
        es, state = made()
        options = {"generations": generations, "saving": Saving(every=2, initial=True), **more}
        return fit(
            es, state, lambda p, x: fitness(p) + x, lambda i: jnp.float32(i), folder=tmp_path / folder, **options
        )

    whole = run("whole", 5)
    stopped = []
    run("killed", 5, show=stopped.append, asked_to_stop=lambda: len(stopped) == 2)
    again = run("killed", 5, resume=True)
    assert again.resumed == 2
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, again.state.params)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())["strategy"]
    assert config["optimizer"]["arguments"]["learning_rate"] == pytest.approx(0.4 * config["sigma"])
    replayed = replay(start(), tmp_path / "whole" / "ledger.bin")
    jax.tree.map(np.testing.assert_array_equal, replayed.params, whole.state.params)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda es, state: es.ask(state), 'got sigma="auto", which nothing has chosen yet'),
        (lambda es, state: jax.jit(lambda s: es.step(s, fitness))(state), "still 'auto' under jit"),
        (lambda es, state: es.step(state, lambda p: p["b"].sum() * 0), "noise of no scale .* tells anything"),
        (lambda es, state: es.step(state, lambda p: p["b"].sum() * jnp.nan), "not finite without any noise"),
        (lambda es, state: es.choose(state, lambda m: np.zeros(16), cost=0.1), "no scale changes by 0.1"),
    ],
)
def test_what_cannot_be_chosen_is_refused(act, says):
    es = eggroll.ES(population=16, **AUTO)
    with pytest.raises(ValueError, match=says):
        act(es, es.init(start(), KEY))


def test_rates_and_optimizers_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="which has a rate already; give optimizer=optax"):
        eggroll.ES(optimizer=optax.adam(0.1), learning_rate="auto")
    with pytest.raises(ValueError, match="got learning_rate='large'; a finite number"):
        eggroll.ES(learning_rate="large")
    with pytest.raises(ValueError, match="got sigma='big'"):
        eggroll.ES(sigma="big")
    with pytest.raises(RunError, match="data without a batch"):
        es = eggroll.ES(population=16, **AUTO)
        fit(es, es.init(start(), KEY), lambda p, x: fitness(p), [], generations=1)


@pytest.mark.parametrize("made", [eggroll.ES, eggroll.FullRankES])
def test_what_is_frozen_and_what_differs_among_groups_does_not_count(made):
    def fitness_of(p, scale):
        return scale * fitness({"w": p["w"], "b": p["b"]})

    found = []
    for more in ({}, {"mask": jnp.array([-1e38]), "index": jnp.arange(9) * 10**8, "key": KEY}):
        es = made(
            population=32, antithetic=False, groups=4, rules=[("mask|index|key", "frozen")] if more else (), **AUTO
        )
        es.step(es.init(start() | more, KEY), fitness_of, jnp.array([1.0, 10.0, 100.0, 1000.0]), in_axes=0)
        found.append(es.sigma)
    assert found[0] == found[1]
    assert BEST / 4 <= found[0] <= BEST * 4


@pytest.mark.parametrize(
    ("evaluate", "more", "says"),
    [
        (
            lambda members: members.apply(lambda p: jnp.sum(p["w"])),
            {},
            "noise tells more the larger it is, without end",
        ),
        (lambda members: jnp.ones(3), {}, r"got fitness of shape \(3,\)"),
        (lambda members: ["good"] * len(members), {}, "not an array of numbers"),
        (lambda members: jnp.ones(len(members)), {"cost": -1.0}, r"got cost=-1.0; a finite number > 0"),
        (lambda members: jnp.ones(len(members)), {"rate": float("nan")}, "got rate=nan; a finite number > 0"),
    ],
)
def test_what_nothing_can_be_chosen_by_is_refused(evaluate, more, says):
    es = eggroll.ES(population=8, **AUTO)
    with pytest.raises((TypeError, ValueError), match=says):
        es.choose(es.init(start(), KEY), evaluate, **more)
    assert es.undecided == ("sigma", "learning_rate")


def test_noise_that_can_tell_no_more_is_not_made_larger():
    noise = np.array([1.0, -1.0, 0.5, -0.5])

    def saturating(sigma):  # a network whose scale does not matter: beyond a scale of 1 all noise is alike
        return noise * sigma / (1 + sigma) * (1 + 1e-3 * np.log2(1 + sigma))

    assert 1 <= widest(saturating, 0.01, pairs=True) <= 40
