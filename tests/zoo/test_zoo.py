"""Models as others write them: members equal their dense parameters, and nothing is dense where that is promised."""

from __future__ import annotations

import inspect

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import eggroll
from bench.tools.zoo import ZOO
from eggroll.engine.sameness import described

WIDTH, POPULATION = 16, 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_members_equal_their_dense_parameters(name):
    """And nothing is made dense where that is promised: it would be an error, and explained."""
    case = ZOO[name]
    params = case.init(jax.random.key(0), WIDTH)
    x = jax.random.normal(jax.random.key(1), (5, WIDTH))
    es = eggroll.ES(population=POPULATION, sigma=0.05, fallback="error" if case.factored else "allow")
    members = es.ask(es.init(params, jax.random.key(2)))
    got, alone = np.asarray(members.apply(case.apply, x)), jax.jit(case.apply)
    for i in range(POPULATION):
        want = np.asarray(alone(members.materialize(i), x))
        np.testing.assert_allclose(got[i], want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))
    assert not case.factored or not eggroll.explain(case.apply, params, x).fallbacks


def test_functions_of_equinox_and_diffrax_are_known_and_not_traced_at_every_call():
    """Tracing a solver takes hundreds of times as long as a step."""
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0))
    _, static = eqx.partition(model, eqx.is_inexact_array)

    def of_equinox(scale):
        return lambda params, x: jnp.mean(jax.vmap(eqx.combine(params, static))(x) * scale)

    for known in (ZOO["neural ODE"].apply, of_equinox(1.0)):
        assert described(known) is not None
        assert described(known) == described(known)
    assert described(of_equinox(1.0)) == described(of_equinox(1.0))
    assert described(of_equinox(1.0)) != described(of_equinox(2.0))
    assert described(lambda path: eqx.tree_deserialise_leaves(path, model)) is None  # reads a file


def test_what_jax_and_flax_offer_is_known_but_for_what_reads_files():
    """Whoever calls one of these would otherwise be traced anew at every call; newer releases write them otherwise."""
    for module in (jnp, jnp.linalg, jnp.fft, jax.nn, jax.random, jax.tree, jax.scipy.special, nn, nnx, optax, einops):
        functions = {name: f for name, f in vars(module).items() if callable(f) and not name.startswith("_")}
        unknown = {name for name, f in functions.items() if described(f) is None}
        types = {"Initializer", "PureState", "MaskOrFn", "ScalarOrSchedule", "Schedule"}
        assert unknown <= (types if module is not jnp else {"load", "fromfile"})
    for transformation in (
        jax.vmap,
        jax.grad,
        jax.value_and_grad,
        jax.checkpoint,
        jax.jit,
        jax.vjp,
        jax.jvp,
        jax.lax.scan,
    ):
        assert described(transformation) is not None
    assert described(inspect.stack) is None
