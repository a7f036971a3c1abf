"""Any optax optimizer that lives on gradient, parameters and loss; others are refused before anything runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import eggroll
from eggroll.strategy.generation import Generation
from tests.quick import quickest
from tests.strategy.common import KEY, X, Y, assert_close, assert_same_bits, centred, dense, descent, fitness, params

pytestmark = pytest.mark.optimised  # bits, as users get them

N = 4
FITNESS = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
MASK = {"kernel": True, "bias": False}

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adam, schedule": lambda: optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    "adamw": lambda: optax.adamw(0.1),
    "lion": lambda: optax.lion(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "adadelta": lambda: optax.adadelta(0.1),
    "polyak_sgd": lambda: optax.polyak_sgd(0.1, f_min=-10.0),
    "lbfgs": lambda: optax.lbfgs(0.1, linesearch=None),
    "muon": lambda: contrib.muon(0.1),
    "schedule_free": lambda: contrib.schedule_free(optax.sgd(0.1), 0.1),
    "reduce_on_plateau": lambda: optax.chain(optax.adam(0.1), contrib.reduce_on_plateau()),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "masked": lambda: optax.masked(optax.adam(0.1), MASK),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
}


GRADIENT = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(3).normal(size=p.shape), jnp.float32), params())


def make(optimizer):
    return eggroll.ES(population=N, sigma=0.1, optimizer=optimizer, shaping="none")


@pytest.mark.parametrize(
    "name", quickest(OPTIMIZERS, "adam, schedule", "lbfgs", "schedule_free", "masked", "polyak_sgd", "muon")
)
def test_an_update_is_what_the_optimizer_makes_of_the_gradient(name, monkeypatch):
    monkeypatch.setattr(Generation, "gradient", lambda *_: GRADIENT)  # what is tested elsewhere, and slow to compile
    strategy, optimizer = make(OPTIMIZERS[name]()), optax.with_extra_args_support(OPTIMIZERS[name]())
    state = strategy.init(params(), KEY)

    @jax.jit
    def both(state, p):
        told, _ = strategy.tell(state, strategy.ask(state), FITNESS)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update(GRADIENT, optimizer.init(p), p, value=jnp.float32(-FITNESS.mean()))
        return told, optax.apply_updates(p, updates)

    told, want = both(state, params())
    assert_close(told.params, want, 1e-5)
    assert jax.tree.structure(told) == jax.tree.structure(state)  # fit for the next generation
    for old, new in zip(jax.tree.leaves(params()), jax.tree.leaves(told.params), strict=True):
        assert np.isfinite(new).all() and np.any(np.asarray(old) != np.asarray(new))


def test_lbfgs_without_a_line_search_lowers_the_loss():
    # The same noise in all generations: curvature from gradients of different noise would be of the noise.
    optimizer = optax.lbfgs(0.1, linesearch=None)
    strategy = eggroll.ES(population=64, sigma=0.05, optimizer=optimizer, shaping="none", noise_reuse=100)
    state, before = strategy.init(params(), KEY), float(fitness(params(), X, Y))
    for _ in range(20):
        state, _ = strategy.step(state, fitness, X, Y)
    assert float(fitness(state.params, X, Y)) > 0.2 * before and before < 0
    state, metrics = strategy.tell(state, strategy.ask(state), np.arange(64.0))
    assert int(state.generation) == 21 and float(metrics["update_norm"]) > 0


def test_multi_steps_moves_at_every_second_generation():
    strategy = make(optax.MultiSteps(optax.sgd(0.1), 2))
    first = strategy.init(params(), KEY)
    second, _ = strategy.tell(first, strategy.ask(first), FITNESS)
    third, _ = strategy.tell(second, strategy.ask(second), FITNESS)
    assert_same_bits(second.params, params())
    moves = [descent(dense(strategy.ask(state)), params(), centred(FITNESS), 0.1) for state in (first, second)]
    assert_close(third.params, jax.tree.map(lambda p, a, b: np.asarray(p) - 0.1 * (a + b) / 2, params(), *moves), 1e-5)


@pytest.mark.parametrize(
    ("optimizer", "missing"),
    [
        (optax.lbfgs, "value_fn"),
        (lambda: optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(10)), "value_fn"),
        (lambda: optax.MultiSteps(optax.lbfgs(), 2), "value_fn"),
        (lambda: contrib.sophia(0.1), "obj_fn"),
    ],
    ids=["lbfgs", "backtracking", "inside another", "sophia"],
)
def test_an_optimizer_that_needs_a_function_is_refused_at_once(optimizer, missing):
    strategy = make(optimizer())
    with pytest.raises(TypeError, match=rf"cannot work with an evolution strategy.*{missing}.*linesearch=None"):
        strategy.init(params(), KEY)
