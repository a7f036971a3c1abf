"""`ES`: ask, apply and tell are one step; schedules, reuse of noise, master copies, metrics, state as a pytree."""

from __future__ import annotations

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.strategy.noise.keys import generation_key
from tests.strategy.common import (
    KEY,
    X,
    Y,
    assert_close,
    assert_same_bits,
    centred,
    dense,
    descent,
    es,
    fitness,
    numpy_loss,
    params,
    row,
)

pytestmark = pytest.mark.optimised  # bits, as users get them

N, SIGMA, LR = 8, 0.1, 0.1


@functools.cache
def asked():
    """(strategy, fresh state, its members, their dense parameters, their fitness in float64)."""
    strategy = es(N, SIGMA, LR, shaping="none")
    state = strategy.init(params(), KEY)
    members = strategy.ask(state)
    members.apply(fitness, X, Y)
    stacked = dense(members)
    values = np.array([-numpy_loss(row(stacked, i), X, Y) for i in range(N)])
    return strategy, state, members, stacked, values


def test_a_step_moves_along_the_estimate():
    strategy, state, _, stacked, values = asked()
    new, metrics = strategy.step(state, fitness, X, Y)
    gradient = descent(stacked, params(), centred(values), SIGMA)
    assert_close(new.params, jax.tree.map(lambda p, g: np.asarray(p) - LR * g, params(), gradient), 1e-5)
    assert int(new.generation) == 1 and new.key == state.key
    squares = sum((g**2).sum() for g in jax.tree.leaves(gradient))
    expected = {
        "fitness_mean": values.mean(),
        "fitness_best": values.max(),
        "fitness_worst": values.min(),
        "fitness_std": values.std(),
        "nonfinite": 0,
        "equal_fitness": False,
        "gradient_norm": np.sqrt(squares),
        "update_norm": LR * np.sqrt(squares),
        "sigma": SIGMA,
        "generation": 0,
        "chunk": N,
        "fitness": values,
        "weights": centred(values),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].shape == np.shape(value)
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_ask_apply_tell_is_a_step():
    strategy, state, members, _, _ = asked()
    stepped, step_metrics = strategy.step(state, fitness, X, Y)
    told, tell_metrics = strategy.tell(state, members, members.apply(fitness, X, Y))
    assert_close(told.params, stepped.params, 1e-6)
    assert_same_bits((told.key, told.generation), (stepped.key, stepped.generation))
    assert {*step_metrics} - {*tell_metrics} == {"chunk"}
    assert_close(tell_metrics, {k: step_metrics[k] for k in tell_metrics}, 1e-5)


def as_jax(values, dtype=jnp.float32):
    return jnp.asarray(values, dtype)


HOST = {
    "list": list,
    "tuple": tuple,
    "numpy float64": np.array,
    "numpy float32": np.float32,
    "jax": as_jax,
    "jax scalars": lambda values: [jnp.float32(x) for x in values],
    "numpy scalars": lambda values: [np.float64(x) for x in values],
}


@pytest.mark.parametrize("convert", HOST.values(), ids=HOST)
def test_fitness_of_any_host_or_device_type(convert):
    strategy, state, members, stacked, _ = asked()
    values = [float(i % 3) for i in range(N)]
    new, metrics = strategy.tell(state, members, convert(values))
    gradient = descent(stacked, params(), centred(values), SIGMA)
    assert_close(new.params, jax.tree.map(lambda p, g: np.asarray(p) - LR * g, params(), gradient), 1e-5)
    assert float(metrics["fitness_mean"]) == pytest.approx(np.mean(values))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.bfloat16, jnp.float16])
def test_statistics_of_narrow_fitness_are_in_float32(dtype):
    strategy, state, members, _, _ = asked()
    values = np.arange(N) % 2 if dtype == jnp.bool_ else np.arange(N) * 4096
    new, metrics = strategy.tell(state, members, as_jax(values, dtype))
    want, _ = strategy.tell(state, members, values.astype(np.float32))
    assert_same_bits(new, want)
    np.testing.assert_allclose(metrics["fitness_std"], values.std(), rtol=1e-6)


@pytest.mark.parametrize("largest", [3e38, 1e30, 1e-20, 1e-36, 1e-37])
def test_statistics_of_any_magnitude(largest):
    """Neither sums nor squares overflow or vanish: `|f|` up to the largest float32."""
    strategy, state, members, _, _ = asked()
    values = np.float32(largest * np.linspace(-1, 1, N) ** 3)
    _, metrics = strategy.tell(state, members, values)
    exact = values.astype(np.float64)
    assert float(metrics["fitness_mean"]) == pytest.approx(exact.mean(), rel=1e-5, abs=1e-6 * largest)
    assert float(metrics["fitness_std"]) == pytest.approx(exact.std(), rel=1e-5)
    assert (float(metrics["fitness_best"]), float(metrics["fitness_worst"])) == (exact.max(), exact.min())


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_a_step_on_counts(dtype):
    """The number of right answers is a fitness."""

    def count(p):
        return jnp.sum(p["w"] > 1).astype(dtype)

    strategy = es(N, SIGMA, LR, shaping="none")
    state = strategy.init({"w": jnp.ones(5)}, KEY)
    values = (dense(strategy.ask(state))["w"] > 1).sum(1).astype(dtype)
    _, metrics = strategy.step(state, count)
    np.testing.assert_allclose(metrics["fitness_mean"], values.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["fitness_std"], values.std(), rtol=1e-6)


def test_generations_draw_fresh_noise_unless_it_is_reused():
    def noise(strategy, generation):
        state = strategy.init(params(), KEY)
        state = State(**{**vars(state), "generation": jnp.int32(generation)})
        return np.asarray(strategy.ask(state).materialize(0)["kernel"]).tobytes()

    State = eggroll.State
    fresh = [noise(es(N), g) for g in range(4)]
    assert len(set(fresh)) == 4
    reused = [noise(es(N, noise_reuse=2), g) for g in range(4)]
    assert reused == [fresh[0], fresh[0], fresh[1], fresh[1]]
    assert generation_key(KEY, 3, 2) == generation_key(KEY, 1)


def test_sigma_and_learning_rate_follow_their_schedules():
    sigma = optax.exponential_decay(0.2, 1, 0.5)
    strategy = es(N, sigma, optimizer=optax.sgd(optax.piecewise_constant_schedule(0.1, {1: 3.0})), shaping="none")
    state = strategy.init(params(), KEY)
    for generation, (s, lr) in enumerate([(0.2, 0.1), (0.1, 0.3), (0.05, 0.3)]):
        stacked, base = dense(strategy.ask(state)), state.params
        state, metrics = strategy.step(state, fitness, X, Y)
        assert float(metrics["sigma"]) == pytest.approx(s) and int(metrics["generation"]) == generation
        values = [-numpy_loss(row(stacked, i), X, Y) for i in range(N)]
        gradient = descent(stacked, base, centred(values), s)
        assert_close(state.params, jax.tree.map(lambda p, g, lr=lr: np.asarray(p) - lr * g, base, gradient), 1e-4)


def test_a_schedule_must_stay_above_zero():
    strategy = es(N, optax.linear_schedule(0.1, 0.0, 1))
    state, _ = strategy.step(strategy.init(params(), KEY), fitness, X, Y)
    for update in (
        lambda: strategy.step(state, fitness, X, Y),
        lambda: strategy.tell(state, strategy.ask(state), np.arange(N)),
    ):
        with pytest.raises(ValueError, match=r"got sigma=0.0 from the schedule at generation 1; a number > 0"):
            update()
    lost, _ = jax.jit(lambda s: strategy.step(s, fitness, X, Y))(state)  # under jit nothing can be raised
    assert_same_bits(lost, state)


def test_small_updates_add_up_in_bfloat16():
    """One is 2⁸ steps of bfloat16's own precision away from 1e-5: without a master copy no update would last."""
    updates, size = 400, 1e-5
    optimizer = optax.stateless(lambda g, _: jax.tree.map(lambda x: jnp.full_like(x, size), g))
    strategy = es(2, SIGMA, optimizer=optimizer)
    start = {"low": jnp.ones((4, 2), jnp.bfloat16), "full": jnp.ones((4, 2))}
    assert start["low"][0, 0] + jnp.bfloat16(size) == start["low"][0, 0]

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(0, updates, lambda _, s: strategy.tell(s, strategy.ask(s), jnp.arange(2.0))[0], state)

    state = run(strategy.init(start, KEY))
    assert state.params["low"].dtype == jnp.bfloat16 and len(state.master) == 1
    np.testing.assert_allclose(state.master[0], 1 + updates * size, rtol=1e-5)
    np.testing.assert_allclose(state.params["full"], 1 + updates * size, rtol=1e-5)
    np.testing.assert_array_equal(state.params["low"], state.master[0].astype(jnp.bfloat16))
    assert np.all(np.asarray(state.params["low"]) > 1)


def test_frozen_parameters_stay_under_weight_decay_and_cost_no_memory():
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    strategy = es(N, SIGMA, optimizer=optimizer, rules=(("bias|steps|low", "frozen"),))
    extra = {"steps": jnp.arange(3), "low": jnp.ones(3, jnp.bfloat16)}
    state = strategy.init({**params(), **extra}, KEY)
    assert state.master == () and {a.shape for a in jax.tree.leaves(state.opt_state)} == {(), (4, 3)}
    new, _ = strategy.step(state, fitness, X, Y)
    for name in ("bias", "steps", "low"):
        assert_same_bits(new.params[name], state.params[name])
    assert np.all(np.asarray(new.params["kernel"] != state.params["kernel"]))


def test_optimizers_that_name_parameters_work_with_frozen_ones():
    labels = {"kernel": "trained", "bias": "still"}
    optimizer = optax.multi_transform({"trained": optax.sgd(LR), "still": optax.set_to_zero()}, labels)
    strategy = es(N, SIGMA, optimizer=optimizer, rules=(("bias", "frozen"),), shaping="none")
    new, _ = strategy.step(strategy.init(params(), KEY), fitness, X, Y)
    assert_same_bits(new.params["bias"], params()["bias"])
    assert np.all(np.asarray(new.params["kernel"] != params()["kernel"]))


def test_the_state_is_an_ordinary_pytree():
    strategy = es(N, SIGMA, optimizer=optax.adam(0.1), shaping="none")
    state = strategy.init(params(jnp.bfloat16), KEY)
    step = jax.jit(lambda state: strategy.step(state, fitness, X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16)))
    after, metrics = step(state)
    leaves, structure = jax.tree.flatten(state)
    assert_same_bits(step(structure.unflatten(leaves))[0], after)
    assert_same_bits(step(pickle.loads(pickle.dumps(state)))[0], after)
    assert jax.tree.structure(after) == structure
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(after)] == [(a.shape, a.dtype) for a in leaves]
    donated = jax.jit(lambda s: strategy.step(s, fitness, X, Y), donate_argnums=0)
    copy = jax.tree.map(jnp.copy, strategy.init(params(), KEY))
    again, _ = donated(copy)
    assert copy.params["kernel"].is_deleted() and int(again.generation) == 1
    assert np.isfinite(float(metrics["fitness_mean"]))


def test_a_loop_of_steps_under_jit():
    strategy = es(32, SIGMA, optimizer=optax.adam(0.1))

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda s, _: strategy.step(s, fitness, X, Y), state, length=30)

    state, metrics = run(strategy.init({"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}, KEY))
    assert metrics["fitness_mean"].shape == (30,) and int(state.generation) == 30
    assert metrics["fitness_mean"][-1] > metrics["fitness_mean"][0] + 0.2


def test_members_and_state_belong_together():
    strategy, state, members, _, _ = asked()
    later, _ = strategy.step(state, fitness, X, Y)
    with pytest.raises(ValueError, match="got members of generation 0 for a state of generation 1; ask again"):
        strategy.tell(later, members, np.arange(N))
    other = strategy.init(params(), jax.random.key(1))
    with pytest.raises(ValueError, match="got members asked from a state with another key"):
        strategy.tell(other, members, np.arange(N))


def test_scalars_nones_empty_arrays_and_python_numbers_are_parameters():
    strategy = es(N, SIGMA, LR, shaping="none")
    given = {"scale": 1.0, "list": [np.float32(2.0), None], "empty": np.zeros((0, 3), np.float32)}
    state = strategy.init(given, KEY)
    new, _ = strategy.step(state, lambda p: -((p["scale"] * p["list"][0]) ** 2))
    assert jax.tree.structure(new.params) == jax.tree.structure(given)
    assert new.params["scale"] != 1 and new.params["list"][0] != 2 and new.params["empty"].shape == (0, 3)
    assert all(not a.weak_type for a in jax.tree.leaves(state.params)), "a second step compiles nothing new"


def test_repr_says_what_is_not_as_by_default():
    assert repr(eggroll.ES(population=8)) == "ES(population=8, sigma=0.05, rank=1)"
    falling = optax.linear_schedule(0.1, 0.01, 10)
    strategy = eggroll.ES(sigma=falling, rank=2, antithetic=False, rules=[("b", "frozen")])
    found = "ES(population=1024, sigma=linear_schedule, antithetic=False, rules=(('b', 'frozen'),), rank=2)"
    assert repr(strategy).replace(falling.__qualname__, "linear_schedule") == found
    assert repr(eggroll.FullRankES(groups=3)) == "FullRankES(population=30, sigma=0.001, groups=3)"
