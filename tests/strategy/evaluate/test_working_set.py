"""What one member more costs: its own values only, and those of the largest operation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from eggroll.engine.factored import discover, trace
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.evaluate.chunking import OTHER, OWN, largest_operations, member_need
from eggroll.strategy.evaluate.tracing import make_rows
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.plan.leaves import make_plan

ROWS, WIDTH = 8, 512
PARAMS = {"w": jnp.zeros((WIDTH, WIDTH))}
ACTIVATIONS = 4 * ROWS * WIDTH


def cost(fun, *args, params=PARAMS, in_axes=None):
    rows = make_rows(args, in_axes, 6, 1)
    shapes = (params, *rows.abstract())
    program = trace(fun, shapes)
    plan = make_plan(params, discover(program, leaf_paths(params), shapes))
    return member_need(Sampler(plan, "rademacher", 6), program, params, rows)


def bytes_of(fun, *args, **options):
    return cost(fun, *args, **options).bytes


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
    assert ACTIVATIONS / 2 <= bytes_of(SHARING[name], X) <= 4 * ACTIVATIONS
    assert 4 * ACTIVATIONS < 4 * WIDTH * WIDTH / 8


def test_layers_of_a_scan_count_once():
    def fun(p, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w.T), None), x, p["w"])[0]

    deep, shallow = (bytes_of(fun, X, params={"w": jnp.zeros((n, WIDTH, WIDTH))}) for n in (12, 2))
    assert ACTIVATIONS <= shallow <= 4 * ACTIVATIONS
    assert deep - shallow <= 10 * 2 * 4 * 2 * WIDTH  # the ten layers' factors


def test_a_dense_fallback_is_a_members_own():
    assert bytes_of(lambda p, x: x @ jnp.sin(p["w"]), X) >= 4 * WIDTH * WIDTH


def test_shared_inputs_are_free_and_a_members_own_rows_are_not():
    def fun(p, table, x):
        return jnp.tanh(table).sum() + (x[:1] @ p["w"]).sum()

    table = jnp.zeros((6, 1 << 16))
    assert bytes_of(fun, table, X) < table.nbytes / 8
    own = bytes_of(fun, table, X, in_axes=(0, None))
    assert 2 * table.nbytes / 6 <= own < 3 * table.nbytes / 6


def test_a_loop_that_makes_its_carry_differ():
    def loop(small, large):
        # The large carry is shared in the first step and a member's own from the second on.
        return lax.fori_loop(0, 3, lambda _, c: (c[0] + 1, jnp.sin(c[1]) + c[0]), (small, large))

    jaxpr = jax.make_jaxpr(loop)(0.0, jnp.zeros(1000))
    assert largest_operations(jaxpr, [OWN, OTHER]).bytes >= 2 * 4000
    assert largest_operations(jaxpr, [OTHER, OTHER]).bytes == 0


def test_a_while_loop_with_constants_of_its_own():
    def loop(limit, step, x):
        return lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + 1.0, c[1] * step), (0.0, x))

    jaxpr = jax.make_jaxpr(loop)(3.0, 2.0, jnp.zeros(1000))
    assert 8000 <= largest_operations(jaxpr, [OTHER, OWN, OTHER]).bytes <= 12100
    assert largest_operations(jaxpr, [OTHER, OTHER, OTHER]).bytes == 0


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (8, 8)])
def test_the_rows_that_a_member_brings_to_the_largest_product(rows, expected):
    def fun(p, x):
        hidden = jnp.tanh(x @ p["w"])  # the base product on shared rows is made once
        return hidden @ p["w"], jnp.ones((100, 5)) @ hidden[:1, :5].T

    need = cost(fun, jnp.zeros((rows, WIDTH)))
    assert (need.rows, need.flops) == (expected, rows * WIDTH * WIDTH)


def test_own_rows_count_and_a_function_without_products_has_none():
    assert cost(lambda p, x: x @ p["w"], jnp.zeros((6, 3, WIDTH)), in_axes=0).rows == 3
    looped = lambda p, x: lax.fori_loop(0, 4, lambda _, h: jnp.tanh(h @ p["w"]), x)  # noqa: E731
    assert cost(looped, jnp.zeros((6, 3, WIDTH)), in_axes=0).rows == 3
    none = cost(lambda p: p["w"].sum(), params={"w": jnp.zeros(5)})
    assert (none.flops, none.rows, none.columns, none.loops) == (0, 0, frozenset(), False)


def test_the_columns_of_shared_products_and_loops_over_own_values():
    shapes = {"w": jnp.zeros((WIDTH, 24)), "v": jnp.zeros((24, 7)), "b": jnp.zeros((3, 7))}

    def fun(p, x):
        shared = lax.fori_loop(
            0, 3, lambda _, h: h + 1.0, jnp.zeros(7)
        )  # the same for every member: no loop of its own
        return jnp.tanh(x @ p["w"]) @ p["v"] + shared

    need = cost(fun, jnp.zeros((6, 2, WIDTH)), params={k: shapes[k] for k in "wv"}, in_axes=0)
    assert need.columns == {24, 7} and not need.loops
    scanned = cost(lambda p, x: lax.scan(lambda h, b: (h + b, None), x @ p["w"] @ p["v"], p["b"])[0],
                   jnp.zeros((6, 2, WIDTH)), params=shapes, in_axes=0)  # fmt: skip
    assert scanned.loops
