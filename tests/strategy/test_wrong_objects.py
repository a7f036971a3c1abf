"""Objects in the wrong place: a clear error that says which was got and where it belongs; the state stays."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll.nnx
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
    params,
)

N = 8
FITNESS = np.arange(float(N), dtype=np.float32)


def fresh(**options):
    strategy = es(N, 0.1, shaping="none", **options)
    state = strategy.init(params(), KEY)
    return strategy, state, strategy.ask(state)


# ---- what ask, tell, step and apply are given

STATE = "got {} as the state; an eggroll.State is required, as in .*es.init"
MEMBERS = r"got {} as the members; what es.ask\(state\) returned is required"
FUNCTION = "got ArrayImpl as {}; a function of the parameters is required: {}"


GIVEN = {
    "ask(params)": (lambda es, state, members: es.ask(state.params), STATE.format("dict")),
    "ask(what tell returns)": (lambda es, state, members: es.ask((state, {})), STATE.format("tuple")),
    "tell(members, state)": (lambda es, state, members: es.tell(members, state, FITNESS), STATE.format("Members")),
    "tell(params, members)": (lambda es, state, members: es.tell(state.params, members, FITNESS), STATE.format("dict")),
    "tell(state, params)": (lambda es, state, members: es.tell(state, state.params, FITNESS), MEMBERS.format("dict")),
    "tell(state, fitness)": (lambda es, state, members: es.tell(state, FITNESS, members), MEMBERS.format("ndarray")),
    "step(params)": (lambda es, state, members: es.step(state.params, fitness, X, Y), STATE.format("dict")),
    "step(function, state)": (lambda es, state, members: es.step(fitness, state, X), STATE.format("function")),
    "step(state, x)": (lambda es, state, members: es.step(state, X, fitness), FUNCTION.format("fitness_fn", "es.step")),
    "apply(x)": (lambda es, state, members: members.apply(X, fitness), FUNCTION.format("fun", "members.apply")),
}


@pytest.mark.parametrize("case", GIVEN)
def test_methods(case):
    call, text = GIVEN[case]
    strategy, state, members = fresh()
    with pytest.raises(TypeError, match=text):
        call(strategy, state, members)


def test_functions_that_are_none():
    for call in (
        lambda: eggroll.value_and_grad(params(), population=N, sigma=0.1),
        lambda: eggroll.explain(X, fitness),
    ):
        with pytest.raises(TypeError, match=r"got (dict|ArrayImpl) as (loss_fn|fun); a function of the parameters"):
            call()


# ---- fitness that is gone


@pytest.mark.parametrize("listed", [False, True])
def test_deleted_fitness(listed):
    strategy, state, members = fresh()
    values = [jnp.float32(x) for x in range(N)] if listed else jnp.arange(float(N))
    (values[3] if listed else values).delete()
    before = jax.tree.map(jnp.copy, state)
    with pytest.raises(ValueError, match=r"got fitness that was deleted.*donate.*keep a copy"):
        strategy.tell(state, members, values)
    assert_same_bits(state, before)
    new, _ = strategy.tell(state, members, FITNESS)
    assert int(new.generation) == 1


# ---- members of another ES


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"population": 16}, "population=8 for one with population=16"),
        ({"distribution": "normal"}, "distribution='rademacher' for one with distribution='normal'"),
        ({"antithetic": False}, "antithetic=True for one with antithetic=False"),
        ({"sigma": 0.2}, "sigma=0.1 for one with sigma=0.2"),
        ({"sigma": optax.constant_schedule(0.2)}, "sigma=0.1 for one with sigma=0.2"),
    ],
    ids=["population", "distribution", "antithetic", "sigma", "schedule"],
)
def test_members_of_an_es_with_other_noise(options, text):
    _, state, members = fresh()
    other = es(**{"population": N, "sigma": 0.1, "shaping": "none", **options})
    with pytest.raises(ValueError, match=f"got members of an ES with {text}.*Tell the ES that you asked"):
        other.tell(state, members, np.zeros(other.population))


def test_members_of_an_es_with_equal_noise_bring_their_plan():
    _, state, members = fresh(rank=2)
    other, _, _ = fresh(chunk=2)
    new, _ = other.tell(state, members, FITNESS)
    move = descent(dense(members), params(), centred(FITNESS), 0.1)
    assert_close(new.params, jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * g, params(), move), 1e-5)


def test_members_of_other_parameters():
    strategy, _, members = fresh()
    for other in ({**params(), "kernel": jnp.ones((5, 3))}, {**params(), "more": jnp.ones(3)}, params(jnp.float16)):
        with pytest.raises(ValueError, match=r"got members of other parameters.*differ in '(kernel|more|bias)"):
            strategy.tell(strategy.init(other, KEY), members, FITNESS)


# ---- NNX modules


class Net(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=nnx.Rngs(0))])


def model_loss(model, x):
    return jnp.mean(model(x) ** 2)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"net": [m]}], ids=["module", "inside a pytree"])
@pytest.mark.parametrize("make", [lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)), Net], ids=["layer", "net"])
def test_a_module_is_no_pytree_of_parameters(make, wrap):
    model = wrap(make())
    for call in (
        lambda: eggroll.value_and_grad(model_loss, population=N, sigma=0.1)(model, X, key=KEY),
        lambda: eggroll.grad(model_loss, population=N, sigma=0.1)(model, X, key=KEY),
        lambda: es(N).init(model, KEY),
        lambda: eggroll.explain(model_loss, model, X),
    ):
        with pytest.raises(TypeError, match=r"NNX module (Linear|Net) as par.*eggroll.nnx.ES, .*nnx.split"):
            call()


def test_plain_parameters_do_not_need_flax(monkeypatch):
    monkeypatch.delitem(sys.modules, "flax.nnx")
    assert int(es(N).init(params(), KEY).generation) == 0
    assert "flax.nnx" not in sys.modules


@pytest.mark.parametrize("function", [eggroll.nnx.value_and_grad, eggroll.nnx.grad])
@pytest.mark.parametrize("argnums", [nnx.DiffState(0, nnx.LoRAParam), (0, nnx.DiffState(1, nnx.Param))])
def test_what_argnums_filters_is_called_wrt(function, argnums):
    with pytest.raises(TypeError, match=r"got argnums=.*says which arguments are models.*wrt=nnx.LoRAParam"):
        function(model_loss, population=N, sigma=0.1, argnums=argnums)
