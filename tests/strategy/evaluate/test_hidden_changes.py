"""What a function depends on may hide where its code does not show it: no result is older than what it depends on."""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from tests.strategy.common import KEY
from tests.strategy.evaluate.test_functions_made_anew import TINY, mean, none, strategy

settings = types.ModuleType("settings")
settings.scale = 1.0


def scale_of(module):
    return module.scale


@functools.lru_cache
def remembered():
    return {"scale": 1.0}


@jax.jit
def jitted(x):
    return x + remembered()["scale"]


class Kind(type):
    scale = 1.0


class OfKind(metaclass=Kind):
    __call__ = staticmethod(functools.partial(lambda p: none(p) + 1.0))


class Choice(enum.Enum):
    MUTABLE = [1.0]  # noqa: RUF012


class Device:
    """Of a name that JAX has, too."""

    scale = 1.0


def add_to(holder, name):
    return lambda: setattr(holder, name, getattr(holder, name) + 1)


def hidden_changes(file):
    """The same, behind what tells of a function: `change` undoes nothing."""
    held, buffer, masked = [settings], Device(), np.ma.array([1.0, 2.0], mask=[0, 0])
    np.save(file, 1.0)
    add, chosen = add_to(settings, "scale"), Choice.MUTABLE
    yield "a module in a list", lambda: lambda p: none(p) + held[0].scale, add
    yield "a module passed on", lambda: lambda p: none(p) + scale_of(settings), add
    yield "a module by default", lambda: lambda p, m=settings: none(p) + m.scale, add
    yield "a module's dict", lambda: lambda p: none(p) + settings.__dict__["scale"], add
    yield "a name as text", lambda: lambda p: none(p) + operator.attrgetter("scale")(settings), add
    yield "a file", lambda: lambda p: none(p) + np.load(file), lambda: np.save(file, float(np.load(file)) + 1)
    yield (
        "what a cache holds",
        lambda: lambda p: none(p) + remembered()["scale"],
        lambda: remembered().update(scale=2.0),
    )
    yield "a mask", lambda: lambda p: none(p) + masked.sum(), lambda: setattr(masked, "mask", [1, 0])
    yield "a class's class", lambda: lambda p: none(p) + OfKind.scale, add_to(Kind, "scale")
    yield (
        "what is called",
        OfKind,
        lambda: setattr(OfKind, "__call__", staticmethod(functools.partial(lambda p: none(p) + 2.0))),
    )
    yield "an enumeration", lambda: lambda p: none(p) + chosen.value[0], lambda: chosen.value.__setitem__(0, 2.0)
    yield "a name of JAX's", lambda: lambda p: none(p) + buffer.scale, add_to(buffer, "scale")
    yield "keys", lambda: draws, lambda: jax.config.update("jax_default_prng_impl", "rbg")
    yield "jit", lambda: lambda p: jitted(none(p)), lambda: (remembered().update(scale=9.0), jax.clear_caches())
    yield "a library", lambda: lambda p: none(p) + jnp.hypot(3.0, 4.0), lambda: setattr(jnp, "hypot", lambda x, y: x)


def draws(p):
    return none(p) + jax.random.uniform(jax.random.key(0))


def test_nothing_that_changes_is_overlooked(tmp_path, monkeypatch):
    monkeypatch.setattr(jnp, "hypot", jnp.hypot)  # put back at the end
    for name, make, change in hidden_changes(tmp_path / "x.npy"):
        before = mean(make())
        change()
        got, right = mean(make()), float(make()(TINY))
        jax.config.update("jax_default_prng_impl", "threefry2x32")
        assert got == pytest.approx(right), name
        assert got != before, name


@dataclasses.dataclass
class Options:
    scale: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:
    w: jax.Array
    options: object = dataclasses.field(metadata={"static": True})


def test_what_a_pytree_holds_beside_arrays_is_looked_at_too():
    options, es = Options(1.0), eggroll.ES(population=2, sigma=0.1)
    Options.__hash__ = object.__hash__  # equal to itself, whatever it holds
    state = es.init(Weights(jnp.ones(2), options), KEY)
    apply = lambda: float(es.ask(state).apply(lambda p: jnp.sum(p.w) * 0 + p.options.scale).mean())  # noqa: E731
    assert apply() == 1
    options.scale = 2.0
    assert apply() == 2


def test_a_captured_array_that_is_written_to_changes_no_program_of_before():
    es, state = strategy()
    make = lambda a: lambda p: none(p) + a.sum()  # noqa: E731
    array, other = np.ones(2, np.float32), np.ones(2, np.float32)
    assert mean(make(array)) == 2
    array[:] = 5
    assert float(jax.jit(lambda s: es.ask(s).apply(make(other)).mean())(state)) == 2


def test_settings_that_are_functions_may_change_and_others_not():
    held = [1.0]
    es = eggroll.ES(population=2, sigma=lambda _: held[0], shaping=lambda f: f * held[0], rules=[("w", "dense")])
    state = es.init(TINY, KEY)
    f = eggroll.value_and_grad(lambda p: jnp.sum(p["w"]), population=2, sigma=0.1, shaping=lambda f: f * held[0])
    before, gradient = es.step(state, lambda p: jnp.sum(p["w"]))[1], f(TINY, key=KEY)[1]["w"]
    held[0] = 2.0
    after = es.step(state, lambda p: jnp.sum(p["w"]))[1]
    assert (before["sigma"], after["sigma"]) == (1, 2)
    np.testing.assert_allclose(after["weights"], 2 * after["fitness"], rtol=1e-6)
    np.testing.assert_allclose(f(TINY, key=KEY)[1]["w"], 2 * gradient, rtol=1e-6)
    with pytest.raises(AttributeError, match=r"got sigma=0.3 for a strategy.*ES\(sigma=...\)"):
        es.sigma = 0.3
