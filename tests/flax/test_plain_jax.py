"""Functions of plain pytrees: vmap over data, a recurrent scan, derivatives taken inside the function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests.flax.truth import by_path, check_members, normal, sides

X, Y = normal(8, 6, 4), normal(9, 6, 2)
MLP = {"body": normal(0, 4, 5), "head": normal(1, 5, 2)}


def forward(params, x):
    return jnp.tanh(x @ params["body"]) @ params["head"]


def loss(params, x, y):
    return jnp.mean((forward(params, x) - y) ** 2)


def test_vmap_over_data():
    def one(params, x):
        return params["out"] @ jnp.tanh(params["in"] @ x + params["bias"])

    params = {"in": normal(0, 5, 4), "bias": normal(1, 5), "out": normal(2, 3, 5)}
    plan = by_path(check_members(lambda p, x: jax.vmap(one, (None, 0))(p, x), params, X))
    assert sides(plan["in"]) == ((1,), (0,), ())
    assert plan["bias"].kind == "dense"


@pytest.mark.slow
def test_a_recurrent_scan():
    def run(params, xs):
        def step(h, x):
            h = jnp.tanh(params["recurrent"] @ h + params["input"] @ x)
            return h, h

        return jax.lax.scan(step, jnp.zeros(4), xs)

    check_members(run, {"recurrent": normal(0, 4, 4), "input": normal(1, 4, 4)}, X)


def test_one_step_of_gradient_descent_inside_the_loss():
    """Meta-learning: the parameters are an initialisation, judged after a step on them."""

    def after_step(params, x, y):
        slope = jax.grad(loss)(params, x, y)
        return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, slope), x, y)

    check_members(after_step, MLP, X, Y)


@pytest.mark.slow
def test_gradient_descent_on_the_head_only():
    def after_steps(params, x, y):
        def step(head, _):
            slope = jax.grad(lambda head: loss({**params, "head": head}, x, y))(head)
            return head - 0.1 * slope, None

        head, _ = jax.lax.scan(step, params["head"], None, length=3)
        return loss({**params, "head": head}, x, y)

    # What the inner steps move is a dense matrix for every member, whatever the perturbation's form.
    members = check_members(after_steps, MLP, X, Y, rules=[("head", "dense")])
    assert by_path(members)["body"].kind == "low_rank"


def test_derivatives_by_the_inputs():
    """Forces of an energy, and their change along a direction."""

    def forces(params, x, direction):
        energy = lambda x: forward(params, x).sum()  # noqa: E731
        return jax.jvp(jax.grad(energy), (x,), (direction,))

    check_members(forces, MLP, X, normal(3, 6, 4))


@pytest.mark.slow
def test_branches_that_the_data_choose():
    def choose(params, x):
        return jax.lax.cond(x.sum() > 0, lambda: x @ params["a"], lambda: -(x @ params["b"]))

    params = {"a": normal(0, 4, 3), "b": normal(1, 4, 3)}
    for x in (X, -X):
        check_members(choose, params, x)


def test_flags_reach_the_function_as_they_are():
    def run(params, x, training, activation):
        assert training is True
        return getattr(jnp, activation)(x @ params["body"])

    check_members(run, {"body": MLP["body"]}, X, True, "tanh")
