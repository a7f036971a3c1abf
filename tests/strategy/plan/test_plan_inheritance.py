"""What is remembered of a plan, and what an optimizer is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.training.ledger.journal import Journal
from eggroll.training.ledger.rebuilding import replay
from eggroll.training.optimizers import named
from tests.quick import quickest

KEY = jax.random.key(0, impl="threefry2x32")
PARAMS = {"k": jnp.ones((8, 2, 4)), "b": jnp.ones((2, 4))}
X = jnp.ones((3, 8))


def model(p, x):
    return jnp.sum(jnp.einsum("td,dhk->thk", x, p["k"]) + p["b"])


@pytest.mark.slow
def test_members_inspected_before_the_first_step_do_not_decide_its_plan():
    es = eggroll.ES(population=8, sigma=0.1)
    state = es.init(PARAMS, KEY)
    early = es.ask(state)
    early.materialize(0)
    es.step(state, model, X)
    later = es.ask(state)
    later.apply(model, X)
    assert later.plan == eggroll.explain(model, PARAMS, X).plan
    assert early.plan != later.plan


def test_an_optimizer_that_watches_the_loss_is_given_it():
    plateau = optax.contrib.reduce_on_plateau(patience=1, accumulation_size=1)
    es = eggroll.ES(population=8, sigma=0.1, optimizer=optax.chain(optax.sgd(0.0), plateau))
    state = es.init(PARAMS, KEY)
    state, metrics = es.step(state, model, X)
    assert state.opt_state[1].best_value == -metrics["fitness_mean"]


@pytest.mark.parametrize("sigma", [None, "a", True, float("nan")])
def test_a_sigma_that_is_no_positive_number(sigma):
    with pytest.raises(ValueError, match="a finite number > 0"):
        eggroll.ES(sigma=sigma)


def test_an_optimizer_that_is_a_learning_rate():
    with pytest.raises(TypeError, match=r"got optimizer=0\.01; an optax optimizer is required"):
        eggroll.ES(optimizer=1e-2)


def test_value_and_grad_takes_no_schedule():
    with pytest.raises(TypeError, match="got a schedule as sigma"):
        eggroll.value_and_grad(model, population=2, sigma=optax.constant_schedule(0.1))


def two_layers(p, x):
    return -jnp.sum((x @ p["k"] @ p["b"]) ** 2)


def without_b(p, x):
    return -jnp.sum((x @ p["k"]) ** 2)


def elementwise(p, x):
    return -jnp.sum(p["k"] * 2.0) - jnp.sum(x @ p["k"] @ p["b"])


TWO = {"k": jnp.ones((8, 4)), "b": jnp.ones((4, 3))}


def small_es():
    return eggroll.ES(population=8, sigma=0.1, optimizer=optax.sgd(0.1), fallback="allow")


@pytest.mark.parametrize("second", quickest([without_b, elementwise, two_layers], without_b))
def test_each_function_has_a_plan_of_its_own(second):
    """What a function is given after another one is what it is given alone: noise, plan and update, bit for bit."""
    es, alone = small_es(), small_es()
    state = es.init(TWO, KEY)
    es.step(state, two_layers, X)
    got, _ = es.step(state, second, X)
    want, _ = alone.step(state, second, X)
    assert es.plan == alone.plan == eggroll.explain(second, TWO, X).plan
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want.params), strict=True):
        np.testing.assert_array_equal(a, b)
    if second is without_b:
        np.testing.assert_array_equal(got.params["b"], TWO["b"])
        told = es.ask(state)
        told.apply(without_b, X)
        moved, _ = es.tell(state, told, np.arange(8.0))
        np.testing.assert_array_equal(moved.params["b"], TWO["b"])
    es.step(state, two_layers, X)
    assert es.plan == eggroll.explain(two_layers, TWO, X).plan


def test_a_ledger_of_functions_in_turn_is_replayed(tmp_path):
    es = eggroll.ES(population=8, sigma=0.1, optimizer=named("sgd", learning_rate=0.1), fallback="allow")
    state = es.init(TWO, KEY)
    with Journal(tmp_path / "ledger.bin", es, TWO, key=KEY) as journal:
        for function in (two_layers, without_b, elementwise, two_layers):
            state, metrics = es.step(state, function, X)
            journal.append(metrics)
    again = replay(TWO, tmp_path / "ledger.bin").params
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
