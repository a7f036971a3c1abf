"""What a user's function raises while it is traced: its line first, what to do, and the type and text of before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eggroll
import eggroll.nnx
from eggroll.training import fit
from tests.strategy.common import KEY

P = {"w": jnp.ones((3, 2))}
HOST = r"es\.tell\(state, members, \[reward\(o\) for o in outputs\]\).*eggroll\.training\.Scored"


class Odd(Exception):
    """With a constructor of its own."""

    def __init__(self, one, two):
        super().__init__(one, two)
        self.one = one


def odd(p):
    raise Odd(1, "two")


def truth(p):
    if jnp.sum(p["w"]) > 0:
        return 1.0
    return 0.0


CASES = [
    (lambda p: float(jnp.sum(p["w"])), jax.errors.ConcretizationTypeError, HOST),
    (lambda p: np.sum(np.asarray(p["w"])), jax.errors.TracerArrayConversionError, HOST),
    (lambda p: len(f"{jnp.sum(p['w']):.2f}"), TypeError, HOST),
    pytest.param(lambda p: np.random.default_rng(jnp.argmax(p["w"])).random(), TypeError, HOST, id="Cython"),
    (lambda p: [1.0, 2.0][jnp.argmax(p["w"])], jax.errors.TracerIntegerConversionError, HOST),
    (truth, jax.errors.TracerBoolConversionError, HOST),
    (lambda p: jnp.ones((4, 4)) @ p["w"], TypeError, "contracting dimensions"),
    (lambda p: p["v"], KeyError, "KeyError: 'v'"),
    (odd, Odd, "Odd: .1, 'two'."),
    (lambda p: next(iter(p["w"][:0])), RuntimeError, "StopIteration"),
]


def step(fun):
    es = eggroll.ES(population=2, sigma=0.1)
    es.step(es.init(P, KEY), fun)


def apply(fun):
    es = eggroll.FullRankES(population=2, sigma=0.1)
    es.ask(es.init(P, KEY)).apply(fun)


def gradient(fun):
    eggroll.value_and_grad(fun, population=2, sigma=0.1)(P, key=KEY)


def training(fun):
    es = eggroll.ES(population=2, sigma=0.1)
    fit(es, es.init(P, KEY), fun, generations=1)


def model(fun):
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    eggroll.nnx.value_and_grad(lambda m: fun({"w": m.kernel[...]}), population=2, sigma=0.1)(layer, key=KEY)


@pytest.mark.parametrize("call", [step, apply, gradient, training, model])
@pytest.mark.parametrize(("fun", "kind", "text"), CASES)
def test_the_users_line_comes_first(call, fun, kind, text):
    with pytest.raises(kind) as caught:
        call(fun)
    message = str(caught.value)
    first = fun.__code__.co_firstlineno
    lines = {f"{__file__}:{first + i} ({fun.__name__}): " for i in range(3)}
    assert any(message.startswith(line) for line in lines), message
    with pytest.raises(kind, match=f"(?s)JAX traced|JAX traces.*{text}"):
        raise caught.value


def test_what_the_error_carries_is_kept():
    with pytest.raises(KeyError) as caught:
        step(lambda p: p["v"])
    assert caught.value.args == ("v",) and isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(Odd) as odd_one:
        step(odd)
    assert odd_one.value.one == 1


def test_a_call_that_does_not_fit_names_the_function():
    def two(p, x):
        return jnp.sum(p["w"]) + x

    with pytest.raises(TypeError, match=rf"^{__file__}:\d+ \(two\): def two\(p, x\).*(?s:.*)missing 1 required"):
        step(two)
