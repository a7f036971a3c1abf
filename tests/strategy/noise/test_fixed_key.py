"""A key that a jitted function captures, or a loop hands on, gives the same noise again: told, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

import eggroll
import eggroll.nnx

KEY = jax.random.key(0)
P = {"w": jnp.ones(2)}
ROWS = jnp.ones((2, 2))
es = eggroll.ES(population=2, sigma=0.1)
STATE = es.init(P, KEY)
estimate = eggroll.value_and_grad(lambda p: jnp.sum(p["w"] ** 2), population=2, sigma=0.1, fallback="allow")


def fitness(p, x=0.0):
    return jnp.sum(p["w"]) + jnp.sum(x)


def of(key, p=None):
    return estimate(P if p is None else p, key=key)[1]


def in_scan(key_of):
    def run(p, key):
        def body(p, x):
            return of(key_of(key, x), p), None

        return jax.lax.scan(body, p, jnp.arange(2))[0]

    return run


def carried(key_of, p=P, key=KEY):
    """Scans over a carry of parameters and key, which `key_of(key)` follows."""
    return jax.lax.scan(lambda c, _: ((of(c[1], c[0]), key_of(c[1])), None), (p, key), length=2)[0]


def epochs(p, key, key_of):
    """A loop in a loop, whose inner one makes keys; `key_of(before, after)` is the outer one's next."""

    def epoch(c, _):
        p, after = carried(lambda key: jax.random.split(key)[0], *c)
        return (p, key_of(c[1], after)), None

    return jax.lax.scan(epoch, (p, key), length=2)[0]


def jitted(p, key):
    return jax.jit(lambda p, key: of(key, p))(p, key)


def only_params(state):
    return replace(state, params=es.step(state, fitness)[0].params)


FIXED = {
    "carry": lambda: jax.jit(lambda p, key: carried(lambda key: key, p, key))(P, KEY),
    "eager while carry": lambda: jax.lax.while_loop(
        lambda c: c["i"] < 2, lambda c: {**c, "p": of(c["key"], c["p"]), "i": c["i"] + 1}, {"p": P, "key": KEY, "i": 0}
    ),
    "made of what does not change": lambda: jax.lax.fori_loop(
        0, 2, lambda _, c: (of(c[2], c[0]), c[1], jax.random.fold_in(c[1], 7)), (P, KEY, KEY)
    ),
    "a function in it": lambda: jax.lax.fori_loop(0, 2, lambda _, c: (jitted(*c), c[1]), (P, KEY)),
    "jit in jit": lambda: jax.jit(lambda p: jitted(p, KEY))(P),
    "epochs": lambda: jax.jit(lambda p, key: epochs(p, key, lambda before, after: before))(P, KEY),
    "state's carry": lambda: jax.lax.fori_loop(0, 2, lambda _, state: only_params(state), STATE),
    "with the parameters": lambda: jax.jit(lambda x: estimate(P, key=KEY)[0] + x)(1.0),
    "closed over": lambda: jax.jit(lambda p: of(KEY, p))(P),
    "made inside": lambda: jax.jit(lambda p: of(jax.random.fold_in(jax.random.key(1), 2), p))(P),
    "under vmap": lambda: jax.jit(jax.vmap(lambda p: of(KEY, p)))({"w": ROWS}),
    "scan": lambda: jax.jit(in_scan(lambda key, x: key))(P, KEY),
    "eager scan": lambda: in_scan(lambda key, x: key)(P, KEY),
    "while": lambda: jax.jit(lambda p, key: jax.lax.while_loop(lambda p: jnp.sum(p["w"]) < 1, lambda p: of(key, p), p))(
        P, KEY
    ),
    "state": lambda: jax.jit(lambda x: es.step(STATE, fitness, x)[0])(ROWS),
    "state's key": lambda: jax.jit(lambda p: es.step(replace(STATE, params=p), fitness)[0])(P),
    "state made inside": lambda: jax.jit(lambda p: es.step(es.init(p, KEY), fitness)[0])(P),
    "ask": lambda: jax.jit(lambda x: es.ask(STATE).apply(fitness, x))(ROWS),
}
FRESH = {
    "gradients of one key added up": lambda: jax.jit(
        lambda p, k: jax.lax.scan(lambda g, _: (jax.tree.map(jnp.add, g, of(k, p)), None), P, None, length=2)[0]
    )(P, KEY),
    "split carry": lambda: jax.jit(lambda p, key: carried(lambda key: jax.random.split(key)[0], p, key))(P, KEY),
    "epochs": lambda: epochs(P, KEY, lambda before, after: after),
    "key and back": lambda: jax.lax.fori_loop(0, 2, lambda _, c: (of(c[1], c[0]), c[2], c[1]), (P, KEY, KEY)),
    "keys returned": lambda: jax.lax.map(lambda key: (key, of(key)), jax.random.split(KEY, 2)),
    "sweep in turn": lambda: jax.lax.map(lambda p: of(KEY, p), {"w": ROWS}),
    "eager branch": lambda: jax.lax.cond(True, lambda p: of(KEY, p), lambda p: p, P),
    "in a fitness": lambda: jax.jit(lambda s, key: es.step(s, lambda p, key: of(key, p)["w"].sum(), key))(STATE, KEY),
    "argument": lambda: jax.jit(lambda p, key: of(key, p))(P, KEY),
    "folded with the step": lambda: jax.jit(lambda p, i: of(jax.random.fold_in(KEY, i), p))(P, 1),
    "sweep": lambda: jax.vmap(lambda p: of(KEY, p))({"w": ROWS}),
    "jitted sweep": lambda: jax.jit(lambda p, key: jax.vmap(lambda p: of(key, p))(p))({"w": ROWS}, KEY),
    "keys": lambda: jax.jit(jax.vmap(lambda key: of(key)))(jax.random.split(KEY, 2)),
    "scan": lambda: jax.jit(in_scan(jax.random.fold_in))(P, KEY),
    "branch": lambda: jax.jit(lambda p, key: jax.lax.cond(p["w"][0] > 0, lambda p: of(key, p), lambda p: p, p))(P, KEY),
    "state": lambda: jax.jit(lambda state, x: es.step(state, fitness, x)[0])(STATE, ROWS),
    "whole run": lambda: jax.jit(
        lambda p: jax.lax.scan(lambda s, _: (es.step(s, fitness)[0], None), es.init(p, KEY), length=2)[0]
    )(P),
    "eager": lambda: of(KEY, P),
}


@pytest.mark.first(10)
@pytest.mark.parametrize("name", FIXED)
def test_a_constant_key_beside_traced_parameters_is_told(name):
    with pytest.warns(
        eggroll.FixedKeyWarning, match="draws the same noise.*as an argument, another at every call"
    ) as told:
        FIXED[name]()
    assert told[0].filename == __file__


@pytest.mark.first(12)
@pytest.mark.parametrize("name", FRESH)
def test_nothing_is_said_of_a_key_that_changes_or_is_shared_on_purpose(name):
    FRESH[name]()  # warnings are errors


def test_a_model_under_jit():
    from flax import nnx

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    f = eggroll.nnx.value_and_grad(lambda m: jnp.sum(m(ROWS)), population=2, sigma=0.1)
    with pytest.warns(eggroll.FixedKeyWarning, match="draws the same noise"):
        nnx.jit(lambda m: f(m, key=KEY))(model)
    nnx.jit(lambda m, key: f(m, key=key))(model, KEY)
