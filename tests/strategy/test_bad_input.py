"""Bad input: a clear error, or the documented behaviour. Nothing is silently averaged, moved or ignored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import eggroll
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
    loss,
    params,
)

N = 8


def make_es(**options):
    return eggroll.ES(**{"population": N, "sigma": 0.1, **options})


def make_gradient(**options):
    return eggroll.value_and_grad(loss, **{"population": N, "sigma": 0.1, **options})


def fresh(**options):
    strategy = es(N, 0.1, shaping="none", **options)
    state = strategy.init(params(), KEY)
    return strategy, state, strategy.ask(state)


# ---- settings: refused before anything runs, by both entry points


@pytest.mark.parametrize("make", [make_es, make_gradient])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"population": 7}, "got population=7 with antithetic pairs; an even population is required. Use 8"),
        ({"population": 0}, "got population=0; an integer of at least 2 is required"),
        ({"population": 4.0}, "got population=4.0; an integer"),
        ({"groups": 5}, "got groups=5, which must divide population=8"),
        ({"groups": 8}, "even number of members, so that pairs stay together"),
        ({"rank": 0}, "got rank=0; an integer of at least 1 is required. 1 is a sensible start"),
        ({"sigma": 0}, r"got sigma=0; a finite number > 0, an optax schedule.*0.01 to 0.1"),
        ({"sigma": -0.1}, "got sigma=-0.1; a finite number > 0"),
        ({"sigma": float("nan")}, "got sigma=nan; a finite number > 0"),
        ({"sigma": float("inf")}, "got sigma=inf; a finite number > 0"),
        ({"sigma": True}, "got sigma=True"),
        ({"sigma": "0.1"}, "got sigma='0.1'"),
        ({"sigma": None}, "got sigma=None"),
        ({"sigma": 10**400}, "got sigma=1000.*; a finite number > 0"),
        ({"population": 10**30}, "got population=10{30}; at most 2147483647 is required"),
        ({"mesh": "cpu"}, "got mesh='cpu'; a mesh with an axis named"),
        ({"discount": None}, "got discount=None; a number from 0"),
        ({"sigma": np.ones(3)}, r"got sigma=array\(\[1., 1., 1.\]\)"),
        ({"shaping": "softmax"}, "got shaping='softmax'; one of 'none', 'zscore', 'group', 'centered_rank', 'sign'"),
        ({"shaping": None}, "got shaping=None"),
        ({"distribution": "gaussian"}, "got distribution='gaussian'; one of 'rademacher', 'normal' is required"),
        ({"fallback": "dense"}, "fallback='dense'; one of 'warn', 'allow', 'error'"),
        ({"chunk": 0}, 'got chunk=0; an integer of at least 1 is required.*"auto"'),
        ({"chunk": "all"}, "got chunk='all'"),
        ({"mesh": Mesh(np.array(jax.devices()[:1]), ("data",))}, r"axes \('data',\); a mesh with an axis named"),
    ],
)
def test_settings(make, options, text):
    with pytest.raises(ValueError, match=text):
        make(**options)


def test_settings_of_es_alone():
    with pytest.raises(ValueError, match=r"got noise_reuse=0; an integer of at least 1"):
        make_es(noise_reuse=0)
    with pytest.raises(ValueError, match="a finite number > 0, an optax schedule"):
        make_es(sigma=optax.constant_schedule(0.0))
    for optimizer in (0.1, "adam", optax.sgd):
        with pytest.raises(TypeError, match=r"got optimizer=.*; an optax optimizer is required, such as optax.adam"):
            make_es(optimizer=optimizer)


def test_a_sigma_schedule_is_for_es():
    with pytest.raises(TypeError, match="got a schedule as sigma; value_and_grad takes a number"):
        make_gradient(sigma=optax.constant_schedule(0.1))


def test_a_rank_beyond_every_layer_says_what_is_sensible():
    message = r"got rank=4, beyond every layer: the largest full rank is 3 \('kernel'\).*at most 3; 1 to 8 is sensible"
    strategy = make_es(rank=4)
    state = strategy.init(params(), KEY)
    with pytest.raises(ValueError, match=message):
        strategy.step(state, fitness, X, Y)
    with pytest.raises(ValueError, match=message):
        make_gradient(rank=4)(params(), X, Y, key=KEY)
    with pytest.raises(ValueError, match=r"rule for 'kernel' asks for rank 4.*full rank 3"):
        make_gradient(rules=[("kernel", eggroll.LowRankRule(rank=4))])(params(), X, Y, key=KEY)


# ---- parameters and keys


@pytest.mark.parametrize("leaf", [np.arange(3), 3, True, np.zeros(2, bool)])
def test_parameters_that_are_not_floating_point(leaf):
    p = {**params(), "deep": [leaf]}
    for call in (lambda: make_es().init(p, KEY), lambda: make_gradient()(p, X, Y, key=KEY)):
        with pytest.raises(TypeError, match=r"got parameter 'deep/0' of dtype .*only floating-point and complex"):
            call()


@pytest.mark.parametrize("leaf", ["name", len, object()])
def test_parameters_that_are_no_arrays(leaf):
    p = {**params(), "setting": leaf}
    for call in (lambda: make_es().init(p, KEY), lambda: make_gradient()(p, X, Y, key=KEY)):
        with pytest.raises(
            TypeError, match=rf"got a parameter 'setting' of type {type(leaf).__name__}; arrays or numbers"
        ):
            call()


def test_no_parameters():
    for call in (
        lambda: make_es().init({}, KEY),
        lambda: eggroll.grad(lambda p: 0.0, population=2, sigma=1)({}, key=KEY),
    ):
        with pytest.raises(ValueError, match="got parameters without a single array"):
            call()


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (0, TypeError, "got int as a key; a jax.random key is required"),
        (None, TypeError, "got NoneType as a key"),
        (np.zeros(2, np.float32), TypeError, "got float32 of shape"),
        (jax.random.split(jax.random.key(0), 3), ValueError, r"got an array of keys of shape \(3,\); one key"),
        (np.zeros(3, np.uint32), ValueError, r"got a uint32 array of shape \(3,\)"),
    ],
)
def test_keys(key, error, text):
    for call in (lambda: make_es().init(params(), key), lambda: make_gradient()(params(), X, Y, key=key)):
        with pytest.raises(error, match=text):
            call()


# ---- functions


def step(function, has_aux=False, p=None):
    strategy = make_es()
    return strategy.step(strategy.init(p or params(), KEY), function, X, Y, has_aux=has_aux)


def gradient(function, has_aux=False, p=None):
    return eggroll.value_and_grad(function, population=N, sigma=0.1, has_aux=has_aux)(p or params(), X, Y, key=KEY)


@pytest.mark.parametrize("call", [step, gradient])
@pytest.mark.parametrize(
    ("function", "has_aux", "error", "text"),
    [
        (lambda p, x, y: jnp.sum(x), False, ValueError, r"does not use its parameters \(bias, kernel\)"),
        (
            lambda p, x, y: x @ p["kernel"],
            False,
            ValueError,
            r"one scalar \w+ per member; got shape \(5, 3\). Reduce it",
        ),
        (lambda p, x, y: loss(p, x, y)[None], False, ValueError, r"got shape \(1,\)"),
        (lambda p, x, y: (loss(p, x, y), 1), False, TypeError, "pass has_aux=True for a function that returns a pair"),
        (lambda p, x, y: loss(p, x, y), True, TypeError, r"has_aux=True requires the function to return \(\w+, aux\)"),
        (lambda p, x, y: [loss(p, x, y), 1], True, TypeError, r"requires the function to return \(\w+, aux\)"),
        (lambda p, x, y: (loss(p, x, y), 1, 2), True, TypeError, r"requires the function to return \(\w+, aux\)"),
        (lambda p, x, y: (x @ p["kernel"], 1), True, ValueError, r"got shape \(5, 3\)"),
        (lambda p, x, y: loss(p, x, y) * jnp.complex64(1j), False, TypeError, "must be real; got complex64"),
    ],
    ids=["constant", "matrix", "vector", "pair", "no aux", "list", "triple", "matrix and aux", "complex"],
)
def test_functions(call, function, has_aux, error, text):
    with pytest.raises(error, match=text), jax.numpy_dtype_promotion("standard"):
        call(function, has_aux)


def test_a_function_without_a_value():
    for call in (step, gradient):
        with pytest.raises((TypeError, ValueError)):
            call(lambda p, x, y: None)


# ---- fitness


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (np.zeros(N - 1), ValueError, r"got fitness of shape \(7,\); one number per member, shape \(8,\), is required"),
        (np.zeros((N, 1)), ValueError, r"got fitness of shape \(8, 1\)"),
        (jnp.zeros((2, N)), ValueError, r"got fitness of shape \(2, 8\).*Average over data first"),
        (0.0, ValueError, r"got fitness of shape \(\)"),
        ([], ValueError, r"got fitness of shape \(0,\)"),
        (np.zeros(N, np.complex64), TypeError, "got fitness of dtype complex64; real numbers are required"),
        (jnp.zeros(N, jnp.complex64), TypeError, "got fitness of dtype complex64"),
        ([1j] * N, TypeError, "got fitness of dtype complex128"),
        (["good"] * N, TypeError, "got fitness of type list, which is not an array of numbers"),
        (["1.0"] * N, TypeError, "text, dates or None among its values"),
        (np.ma.array(np.ones(N), mask=np.arange(N) == 3), TypeError, "some of its values are masked"),
        (np.zeros(N, [("reward", float)]), TypeError, "it has fields by name"),
        (jax.random.wrap_key_data(np.zeros((N, 2), np.uint32)), TypeError, "got fitness of dtype key<fry>; real"),
        ([1.0] * (N - 1) + [None], TypeError, r"None among its values\); a score that is missing is float\('nan'\)"),
        (None, TypeError, "got fitness of type NoneType"),
        ([[1.0], [1.0, 2.0]], TypeError, "got fitness of type list"),
        ({"a": 1}, TypeError, "got fitness of type dict"),
        (np.zeros(N, "datetime64[s]"), TypeError, "text, dates"),
    ],
)
def test_fitness_that_is_none(values, error, text):
    strategy, state, members = fresh()
    with pytest.raises(error, match=text):
        strategy.tell(state, members, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_member_without_finite_fitness_is_dropped_with_its_pair_and_counted(bad):
    strategy, state, members = fresh()
    values = [bad if i == 3 else float(i * i) for i in range(N)]
    new, metrics = strategy.tell(state, members, values)
    kept = [i for i in range(N) if i not in (2, 3)]
    assert int(metrics["nonfinite"]) == 2
    finite = np.array([v for i, v in enumerate(values) if i != 3])
    np.testing.assert_allclose(metrics["fitness_mean"], finite.mean(), rtol=1e-5)
    np.testing.assert_allclose([metrics["fitness_best"], metrics["fitness_worst"]], [finite.max(), finite.min()])
    stacked = jax.tree.map(lambda a: a[kept], dense(members))
    move = descent(stacked, params(), centred([values[i] for i in kept]), 0.1)
    assert_close(new.params, jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * g, params(), move), 1e-5)


def test_when_nothing_is_finite_the_state_stays():
    strategy, state, members = fresh(optimizer=optax.adam(0.1))
    state, _ = strategy.tell(state, members, np.arange(N))
    before = jax.tree.map(jnp.copy, state)
    half = np.where(np.arange(N) % 2, np.nan, 1.0)  # of every pair, one
    for values in (np.full(N, np.nan), half):
        with pytest.raises(FloatingPointError, match=r"got no finite fitness among 8 members.*lower sigma"):
            strategy.tell(state, strategy.ask(state), values)
        assert_same_bits(state, before)
    lost, metrics = jax.jit(lambda s, f: strategy.tell(s, strategy.ask(s), f))(state, jnp.full(N, jnp.nan))
    assert_same_bits(lost, state)
    assert int(metrics["nonfinite"]) == N and np.isnan(metrics["fitness_mean"]) and np.isnan(metrics["fitness_best"])


def lost_loss(p, x, y):
    return loss(p, x, y) * jnp.nan


def test_when_no_loss_is_finite():
    for call in (step, gradient):
        with pytest.raises(FloatingPointError, match=r"got no finite (loss|fitness) among 8 members"):
            call(lost_loss)
    f = eggroll.value_and_grad(lambda p, x, y: (lost_loss(p, x, y), p["bias"]), population=N, sigma=0.1, has_aux=True)
    (value, aux), grads = jax.jit(lambda p, key: f(p, X, Y, key=key))(params(), KEY)
    assert np.isnan(value) and np.isnan(aux).all()
    assert all(not np.any(np.asarray(g)) for g in jax.tree.leaves(grads))


@pytest.mark.first(2)
@pytest.mark.parametrize("shaping", ["none", "zscore", "group", "centered_rank", "sign"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_constant_fitness_moves_nothing(shaping, antithetic):
    strategy = es(N, 0.1, 1e3, shaping=shaping, antithetic=antithetic, groups=2)
    state = strategy.init(params(), KEY)
    for constant in (0.0, 0.1, -1e30):
        new, metrics = strategy.tell(state, strategy.ask(state), np.full(N, constant))
        assert_same_bits(new.params, state.params)
        assert float(metrics["gradient_norm"]) == 0 and int(new.generation) == 1


def test_rules_that_decide_nothing():
    with pytest.raises(ValueError, match=r"the rule for 'decoder/\.\*' decides for no parameter.*'bias'"):
        make_es(rules=[("decoder/.*", "frozen")]).init(params(), KEY)


def test_rules_from_a_generator_hold_for_every_call():
    f = make_gradient(rules=(rule for rule in [("bias", "frozen")]))
    for rows in (5, 4):  # another shape is traced anew
        _, grads = f(params(), X[:rows], Y[:rows], key=KEY)
        assert not np.any(np.asarray(grads["bias"]))
    strategy = make_es(rules=(rule for rule in [("bias", "frozen")]))
    state, _ = strategy.step(strategy.init(params(), KEY), fitness, X, Y)
    assert_same_bits(state.params["bias"], params()["bias"])
