"""Where no kernel can serve a weight in all its uses, factors are arrays as everywhere, drawn once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import eggroll
from eggroll.engine import jax_compat
from eggroll.kernels import Choice
from tests.quick import quickest
from tests.strategy.common import assert_close
from tests.strategy.kernel_networks import KEY, ROWS, network, scored, step

SQUARE = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(20, 60)), jnp.float32)}


def fused(p, x):
    """One weight for three products, as attention has it."""
    q, k, v = jnp.split(x @ p["w"], 3)
    return q * k + v + sum(x @ part for part in jnp.split(p["w"], 3, axis=1))


def transposed(p, x):
    """An encoder whose decoder has the same weight."""
    return lax.fori_loop(0, 3, lambda _, x: x + p["w"] @ jnp.tanh(x @ p["w"]) / 100, x)


def precise(p, x):
    return lax.fori_loop(0, 3, lambda _, x: jnp.matmul(x, p["w"], precision="highest")[:20] / 10, x)


def high(p, x):
    return lax.fori_loop(0, 3, lambda _, x: jnp.matmul(x, p["w"], precision="high")[:20] / 10, x)


def either(p, x):
    """A branch that every member takes for itself."""
    return lax.cond(x[0] > 0, lambda x: x @ p["w"], lambda x: 2 * x @ p["w"], x)


def shared(p, x):
    """Inputs that all members share, one after the other."""
    return lax.scan(lambda h, shared: (h + shared @ p["w"], None), jnp.zeros(60), jnp.ones((3, 20)))[0] * x[0]


AWKWARD = {fused: False, transposed: False, precise: True, high: False, either: False, shared: False}


@pytest.mark.parametrize("fun", quickest(AWKWARD, shared), ids=lambda fun: fun.__name__)
def test_what_a_kernel_cannot_serve_altogether_keeps_its_factors(fun, request):
    """Else they would be drawn anew at every use; so it is with a precision that the kernel does not know."""

    def run():
        es = eggroll.ES(population=6, sigma=0.1, optimizer=optax.sgd(0.1))
        start = es.init(SQUARE, KEY)
        traced = jax.jit(lambda s: es.step(s, scored(fun), ROWS, in_axes=0)[0].params).trace(start)
        found = [choice for names in jax_compat.name_stacks(traced.jaxpr) if (choice := Choice.in_scope(names))]
        return traced.lower().compile()(start), {c for c in found if c.name}

    plain, _ = run()
    request.getfixturevalue("tpu_kernels")
    fast, choices = run()
    assert_close(fast, plain, 1e-5)
    assert {c.implementation for c in choices} == ({"kernel"} if AWKWARD[fun] else set())


def test_what_no_kernel_can_do_keeps_its_factors(picky_kernel):
    """They are drawn once, not at every use of a key."""
    _, choices = step(network, 0)
    assert not choices
