"""What is remembered of a plan, and what an optimizer is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

import eggroll

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
