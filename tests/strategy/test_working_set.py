"""What one member more costs: its own values only, and those of the largest operation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from eggroll.engine.interpreter import trace
from eggroll.engine.paths import leaf_paths
from eggroll.engine.usage import discover
from eggroll.strategy.inputs import make_rows
from eggroll.strategy.perturbation import Sampler
from eggroll.strategy.plan import make_plan
from eggroll.strategy.working_set import largest_operation, member_bytes

ROWS, WIDTH = 8, 512
PARAMS = {"w": jnp.zeros((WIDTH, WIDTH))}
ACTIVATIONS = 4 * ROWS * WIDTH


def cost(fun, *args, params=PARAMS, in_axes=None):
    rows = make_rows(args, in_axes, 6, 1)
    shapes = (params, *rows.abstract())
    program = trace(fun, shapes)
    plan = make_plan(params, discover(program, leaf_paths(params), shapes))
    return member_bytes(Sampler(plan, "rademacher", 6), program, params, rows)


X = jnp.zeros((ROWS, WIDTH))
SHARING = {
    "product": lambda p, x: x @ p["w"],
    "transposed": lambda p, x: x @ p["w"].T,
    "cast": lambda p, x: x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16),
    "reshaped": lambda p, x: jnp.einsum("bi,ihk->bhk", x, p["w"].reshape(WIDTH, 8, -1)),
    "scaled": lambda p, x: x @ (p["w"] * 0.5),
    "jit": lambda p, x: jax.jit(lambda w, x: x @ w.T)(p["w"], x),
    "remat": lambda p, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w.T))(p["w"], x),
    "fori_loop": lambda p, x: lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p["w"].T), x),
    "cond": lambda p, x: lax.cond(x[0, 0] > 0, lambda w, x: x @ w.T, lambda w, x: x @ w, p["w"], x),
}


@pytest.mark.parametrize("name", SHARING)
def test_weights_that_are_moved_or_cast_are_shared(name):
    assert ACTIVATIONS / 2 <= cost(SHARING[name], X) <= 4 * ACTIVATIONS
    assert 4 * ACTIVATIONS < 4 * WIDTH * WIDTH / 8


def test_layers_of_a_scan_count_once():
    def fun(p, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w.T), None), x, p["w"])[0]

    deep, shallow = (cost(fun, X, params={"w": jnp.zeros((n, WIDTH, WIDTH))}) for n in (12, 2))
    assert ACTIVATIONS <= shallow <= 4 * ACTIVATIONS
    assert deep - shallow <= 10 * 2 * 4 * 2 * WIDTH  # the ten layers' factors


def test_a_dense_fallback_is_a_members_own():
    assert cost(lambda p, x: x @ jnp.sin(p["w"]), X) >= 4 * WIDTH * WIDTH


def test_shared_inputs_are_free_and_a_members_own_rows_are_not():
    def fun(p, table, x):
        return jnp.tanh(table).sum() + (x[:1] @ p["w"]).sum()

    table = jnp.zeros((6, 1 << 16))
    assert cost(fun, table, X) < table.nbytes / 8
    own = cost(fun, table, X, in_axes=(0, None))
    assert 2 * table.nbytes / 6 <= own < 3 * table.nbytes / 6


def test_a_loop_that_makes_its_carry_differ():
    def loop(small, large):
        # The large carry is shared in the first step and a member's own from the second on.
        return lax.fori_loop(0, 3, lambda _, c: (c[0] + 1, jnp.sin(c[1]) + c[0]), (small, large))

    jaxpr = jax.make_jaxpr(loop)(0.0, jnp.zeros(1000))
    assert largest_operation(jaxpr, [True, False]) >= 2 * 4000
    assert largest_operation(jaxpr, [False, False]) == 0


def test_a_while_loop_with_constants_of_its_own():
    def loop(limit, step, x):
        return lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + 1.0, c[1] * step), (0.0, x))

    jaxpr = jax.make_jaxpr(loop)(3.0, 2.0, jnp.zeros(1000))
    assert 8000 <= largest_operation(jaxpr, [False, True, False]) <= 12100
    assert largest_operation(jaxpr, [False, False, False]) == 0
