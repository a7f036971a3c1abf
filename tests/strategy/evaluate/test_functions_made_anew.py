"""A function written inline is made anew at every call: compiled once, never stale, and told where it cannot be."""

from __future__ import annotations

import copy
import functools
import gc
import os
import random
import time
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.random import default_rng

import eggroll
from eggroll.strategy.evaluate import compiled
from eggroll.strategy.evaluate.tracing import Rows
from tests.strategy.common import KEY, X, Y, loss, params

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **kwargs: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)
TINY = {"w": jnp.ones(2)}
SCALE = 1.0
settings = types.ModuleType("settings")
settings.scale = 1.0


@functools.cache
def strategy():
    es = eggroll.ES(population=2, sigma=0.1)
    return es, es.init(TINY, KEY)


def mean(fun, *args):
    """The mean of `fun` over a pair: its value, where it does not look at the parameters' numbers."""
    es, state = strategy()
    return float(es.ask(state).apply(fun, *args).mean())


def none(p):
    return jnp.sum(p["w"]) * 0


def compilations(calls):
    """How many programs are compiled in all calls but the first."""
    next(calls := iter(calls))()
    before = len(COMPILED)
    for call in calls:
        call()
    return len(COMPILED) - before


class Model:
    factor = 1.0

    def __init__(self):
        self.weight, self.log = 1.0, []

    def __call__(self, p):
        return none(p) + self.weight * Model.factor

    def fitness(self, p):
        return self(p)


def gradient(fun, sigma):
    return eggroll.value_and_grad(fun, population=2, sigma=sigma)(TINY, key=KEY)


def inline_gradient(i):
    f = eggroll.value_and_grad(lambda p, x, y: loss(p, x, y), population=4, sigma=0.1)
    return lambda: f(params(), X, Y, key=jax.random.fold_in(KEY, i))


def inline_step(i):
    return lambda: strategy()[0].step(strategy()[1], lambda p, x: jnp.sum(p["w"]) + x.sum(), X)


def inline_capture(i):
    return lambda: mean(lambda p: jnp.sum(p["w"]) + X.sum())


def fresh_partial(i):
    return lambda: mean(functools.partial(lambda p, x, power: jnp.sum(p["w"]) + x.sum() ** power, power=3), X)


def of_an_object_that_changes_elsewhere(i, model=Model()):  # noqa: B008
    model.log.append(i)
    return lambda: mean(model.fitness)


def sigma_as_an_array(i):
    return lambda: gradient(lambda p: jnp.sum(p["w"]) * 2, jnp.asarray(0.1 + i))


@pytest.mark.parametrize(
    "call",
    [
        inline_gradient,
        inline_step,
        inline_capture,
        fresh_partial,
        of_an_object_that_changes_elsewhere,
        sigma_as_an_array,
    ],
)
def test_the_same_function_made_anew_is_compiled_once(call):
    assert compilations([call(i) for i in range(4)]) == 0


def helper():
    return SCALE


def changes():
    """`(name, makes a function, changes what the function's value depends on)`."""
    numbers, options, array, model = [1.0], {"a": {"b": 1.0}}, np.ones(2, np.float32), Model()
    space, queue = types.SimpleNamespace(a=1.0), np.array([1.0], object)
    yield "list", lambda: lambda p: none(p) + numbers[0], lambda: numbers.append(numbers.pop() + 1)
    yield "dict", lambda: lambda p: none(p) + options["a"]["b"], lambda: options["a"].update(b=2.0)
    yield "array", lambda: lambda p: none(p) + array.sum(), lambda: np.copyto(array, 2.0)
    yield "view", lambda: functools.partial(lambda p, x: none(p) + x.sum(), x=array[1:]), lambda: array.fill(3.0)
    yield "object", lambda: model, lambda: setattr(model, "weight", 2.0)
    yield "method", lambda: model.fitness, lambda: setattr(model, "weight", 3.0)
    yield "class", lambda: model.fitness, lambda: setattr(Model, "factor", 2.0)
    yield "namespace", lambda: lambda p: none(p) + space.a, lambda: setattr(space, "a", 2.0)
    yield "objects", lambda: lambda p: none(p) + queue[0], lambda: queue.__setitem__(0, 2.0)
    yield "global", lambda: lambda p: none(p) + helper(), lambda: globals().update(SCALE=SCALE + 1)
    yield "module", lambda: lambda p: none(p) + settings.scale, lambda: setattr(settings, "scale", settings.scale + 1)


@pytest.mark.parametrize("name", [name for name, *_ in changes()])
def test_what_a_function_refers_to_may_change_at_any_time(name):
    make, change = next(rest for other, *rest in changes() if other == name)
    fun = make()
    before = mean(fun)
    change()
    assert mean(fun) == mean(make()) != before
    assert mean(fun) == float(fun(TINY))


@pytest.mark.parametrize(
    "read",
    [
        lambda: np.random.random(),
        pytest.param(lambda: random.random(), marks=pytest.mark.slow, id="Python"),
        pytest.param(lambda: default_rng().random(), marks=pytest.mark.slow, id="a generator"),
        lambda library=np: library.random.random(),
        lambda: time.perf_counter_ns() % 1000003,
        pytest.param(lambda: int.from_bytes(os.urandom(2)), marks=pytest.mark.slow, id="the system"),
        lambda: float(os.environ["EGGROLL_TEST_READ"]),
    ],
    ids=["NumPy", None, None, "NumPy passed on", "a clock", None, "the environment"],
)
def test_what_is_another_at_every_call_is_read_at_every_call(read, monkeypatch):
    found = set()
    for i in range(2):
        monkeypatch.setenv("EGGROLL_TEST_READ", str(i))
        found.add(mean(lambda p: none(p) + read()))
    assert len(found) == 2


def test_precision_of_the_call_around_is_part_of_the_function():
    fun = lambda p: jnp.sum(p["w"] @ jnp.ones(2))  # noqa: E731
    es, state = strategy()
    program = es.cache.program(fun, state.params, Rows((), (), 2))
    with jax.default_matmul_precision("highest"):
        assert es.cache.program(fun, state.params, Rows((), (), 2)) is not program
    assert es.cache.program(fun, state.params, Rows((), (), 2)) is program


def of_a_strategy(i, fitness=lambda p: jnp.sum(p["w"])):
    es = eggroll.ES(population=2 * i + 2, sigma=0.3)
    es.step(es.init(TINY, KEY), fitness)


def gradient_at(size):
    eggroll.grad(lambda p: jnp.sum(p["w"]), population=2, sigma=0.3)({"w": jnp.ones(size)}, key=KEY)


def of_a_population(i):
    eggroll.value_and_grad(lambda p: jnp.sum(p["w"]), population=2 * i + 2, sigma=jnp.float32(0.3))(TINY, key=KEY)


@pytest.mark.first(6)
@pytest.mark.parametrize(
    ("call", "what"),
    [
        (of_a_strategy, r"the option `population` \(4 -> 6\)\. "),
        (of_a_population, r"the option `population` \(4 -> 6\)\. "),
        (lambda i: gradient(lambda p: jnp.sum(p["w"]), 0.5 + i), r"the option `sigma` \(1.5 -> 2.5\)"),
        (lambda i: mean(lambda p, c: none(p) + c, 10.0 + i), r"argument 1 \(11.0 -> 12.0\)"),
        (lambda i: (lambda n: mean(lambda p: none(p) + n))(30 + i), r"the captured `n` \(31 -> 32\)"),
        (lambda i: mean(lambda p, x: none(p) + x.sum(), jnp.ones(i + 7)), r"float32\[8\] -> float32\[9\]"),
        (lambda i: gradient_at(i + 20), r"parameter w \(float32\[21\] -> float32\[22\]\)\. "),
        (lambda i: mean(functools.partial(lambda p, power: none(p) + power, power=20 + i)), r"'power' of the partial"),
    ],
)
def test_the_third_compilation_says_what_changed(call, what):
    call(0), call(1)
    with pytest.warns(eggroll.RecompilationWarning, match=f"third time, since this changed:.*{what}") as caught:
        call(2)
    assert caught[0].filename == __file__
    call(3)  # said once


def test_captured_arrays_of_earlier_calls_are_let_go(monkeypatch):
    monkeypatch.setattr(compiled, "HELD", 3_000_000)
    es, state = strategy()
    refs = []

    def call(i):
        big = jnp.full(300_000, float(i))
        refs.append(weakref.ref(big))
        es.ask(state).apply(lambda p: jnp.sum(p["w"]) + big.sum())

    call(0), call(1)
    with pytest.warns(eggroll.RecompilationWarning, match="the captured `big`"):
        call(2)
    call(3)
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 3


def test_a_strategy_made_anew_compiles_nothing_again_and_takes_what_its_settings_are_today():
    factor = 1.0

    def updated(population=2, fitness=lambda p, x: jnp.sum(p["w"] * x), **settings):
        scaled = optax.stateless(lambda grads, _: jax.tree.map(lambda g: g * factor, grads))
        es = eggroll.ES(population=population, sigma=0.1, optimizer=scaled, shaping="none", **settings)
        state, _ = es.step(es.init(TINY, KEY), fitness, jnp.arange(2.0))
        members = es.ask(state)
        es.tell(state, members, members.apply(fitness, jnp.ones(2)))
        return np.asarray(state.params["w"] - 1)

    assert compilations([updated] * 3) == 0
    once = updated()
    assert (once != 0).any()
    factor = 3.0
    np.testing.assert_allclose(updated(), 3 * once, rtol=1e-5)
    factor = 1.0
    np.testing.assert_allclose(updated(), once, rtol=1e-6)
    assert (updated(rules=[("w", eggroll.LowRankRule(sigma_scale=2.0))]) != once).any()


@pytest.mark.parametrize("changed", [0, 1])
def test_settings_that_change_behind_a_strategy_are_not_another_ones(changed):
    factors = [[1.0], [1.0]]  # each strategy's own, and equal as long as they are alike

    def made(own):
        scaled = optax.stateless(lambda grads, _: jax.tree.map(lambda g: g * own[0], grads))
        return eggroll.ES(population=2, sigma=0.2, optimizer=scaled, shaping="none")

    def updated(es, n):
        state, _ = es.step(
            es.init(TINY, KEY), lambda p, x: jnp.sum(p["w"] * jnp.arange(2.0)) + x.sum() * 0, jnp.ones(n)
        )
        return np.asarray(state.params["w"] - 1)

    two = [made(own) for own in factors]
    once = [updated(es, 1) for es in two]
    np.testing.assert_array_equal(*once)
    factors[changed][0] = 3.0
    np.testing.assert_allclose(updated(two[changed], 2), 3 * once[0], rtol=1e-5)
    np.testing.assert_allclose(updated(two[1 - changed], 2), once[0], rtol=1e-6)
    np.testing.assert_allclose(updated(made([1.0]), 2), once[0], rtol=1e-6)
    np.testing.assert_allclose(updated(copy.deepcopy(two[changed]), 2), 3 * once[0], rtol=1e-5)  # compiled things stay


def test_what_was_compiled_for_settings_since_changed_is_not_traced_again_for_others():
    factors = [[1.0], [1.0]]

    def made(own):
        return eggroll.ES(population=2, sigma=0.2, optimizer=optax.stateless(lambda g, _: {"w": g["w"] * own[0]}))

    def told(es, fitness):
        state = es.init(TINY, KEY)
        return np.asarray(es.tell(state, es.ask(state), fitness)[0].params["w"] - 1)

    first, second = map(made, factors)
    once = told(first, jnp.arange(2.0))
    factors[0][0] = 3.0
    with jax.default_matmul_precision("highest"):  # `tell` is traced anew, by what the first one compiled
        np.testing.assert_allclose(told(second, jnp.arange(2.0)), once, rtol=1e-6)
