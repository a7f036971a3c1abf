"""concatenate and stack."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from tests.engine.truth import check, check_never_dense, integers, low_rank, ownerships


def join_and_multiply(axis):
    def fun(parts, x):
        joined = jnp.concatenate(parts, axis)
        return jnp.tensordot(joined, x, joined.ndim)

    return fun


@st.composite
def parts(draw):
    """Up to three parts, dense or perturbed, equal in all axes but one, of any ownership and rank."""
    ndim = draw(st.integers(1, 3))
    axis = draw(st.integers(0, ndim - 1))
    shape = draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim))
    alike = draw(st.booleans())
    owners = draw(ownerships(ndim))
    rank = draw(st.integers(1, 3))
    found = []
    for i in range(draw(st.integers(1, 3))):
        shape[axis] = draw(st.integers(1, 3))
        if not alike:
            owners, rank = draw(ownerships(ndim)), draw(st.integers(1, 3))
        perturbed = i == 0 or draw(st.booleans())
        found.append(low_rank(i, shape, *owners, rank) if perturbed else integers(i, shape))
    shape[axis] = sum(p.shape[axis] for p in found)
    return draw(st.permutations(found)), axis, integers(9, shape)


@given(parts())
def test_concatenate(case):
    found, axis, x = case
    check(join_and_multiply(axis), found, x)


OWNERS = [((0,), (1,), 0), ((0,), (1,), 1), ((0, 1), (0, 2), 0), ((0, 1), (0, 2), 1), ((0, 1), (0, 2), 2)]


@pytest.mark.parametrize(("left", "right", "axis"), OWNERS)
@pytest.mark.parametrize("dense_part", [False, True])
def test_concatenate_is_never_dense(left, right, axis, dense_part):
    """Along the axis of either factor, of both, and beside a dense part."""
    shape = (4, 5, 6)[: max(left + right) + 1]
    found = [low_rank(i, shape, left, right, path=f"w{i}") for i in range(2)]
    found.append(integers(3, shape) if dense_part else low_rank(4, shape, left, right, path="w2"))
    joined = list(shape)
    joined[axis] *= 3
    x = integers(5, joined)
    check(join_and_multiply(axis), found, x)
    check_never_dense(join_and_multiply(axis), found, x)


def test_parts_of_one_parameter_join_into_one_term():
    """Split and concatenate along a batch axis: the factors themselves are joined, so no rank is added."""
    from eggroll.engine.factored import trace
    from eggroll.engine.interpreter import Interpreter, Policy
    from eggroll.engine.lowrank import as_perturbed

    w = low_rank(1, (4, 5, 6), (0, 1), (0, 2), 2, members=None)
    program = trace(lambda w: jnp.concatenate([w[2:], w[:2]]), (w,))
    (out,) = Interpreter(Policy("error")).evaluate(program, [as_perturbed(w)])
    assert len(out.terms) == 1 and out.terms[0].rank == 2
    assert [f.array.shape for f in out.terms[0].factors] == [(4, 5, 2), (4, 6, 2)]


@given(st.data())
def test_stack_of_any_parts(data):
    """Along any new axis, of any ownership and rank, dense parts among them, one part twice."""
    shape = data.draw(st.lists(st.integers(1, 3), max_size=3))
    owners = st.tuples(ownerships(len(shape)), st.integers(1, 3))
    found = [
        low_rank(i, shape, *o, rank) for i, (o, rank) in enumerate(data.draw(st.lists(owners, min_size=1, max_size=2)))
    ]
    order = data.draw(st.permutations([*found, found[0], integers(3, shape)]))
    order = order[: data.draw(st.integers(1, 4))]
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    fun = lambda parts, x: jnp.tensordot(jnp.stack(parts, axis), x, x.ndim)  # noqa: E731
    check(fun, [found[0], *order], integers(5, np.stack([np.zeros(shape)] * (len(order) + 1), axis).shape))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dense_part", [False, True])
def test_stack(axis, dense_part):
    found = [low_rank(1, (5, 4), (0,), (1,), 2), low_rank(2, (5, 4), (0,), (1,), 3)]
    found.append(integers(3, (5, 4)) if dense_part else low_rank(4, (5, 4), (1,), (0,), 1))

    def fun(found, x):
        return jnp.tensordot(jnp.stack(found, axis), x, 3)

    x = integers(5, jnp.stack([jnp.zeros((5, 4))] * 3, axis).shape)
    check(fun, found, x)
    check_never_dense(fun, found, x)


def test_weights_joined_into_one_projection():
    """Queries, keys and values side by side, as one product and then apart."""
    names = "qkv"
    params = {n: low_rank(i, (6, 4), (0,), (1,), 2, path=n) for i, n in enumerate(names)}

    def fun(params, x):
        return jnp.split(x @ jnp.concatenate([params[n] for n in names], 1), 3, axis=1)

    x = integers(3, (2, 6))
    check(fun, params, x)
    check_never_dense(fun, params, x, limit=6 * 4 + 1)


def test_a_column_of_biases_appended():
    """A weight and its bias as one affine map."""
    w = low_rank(1, (6, 4), (0,), (1,), 2)
    b = low_rank(2, (4,), (), (0,), 1)

    def fun(p, x):
        return jnp.concatenate([x, jnp.ones((2, 1))], 1) @ jnp.concatenate([p[0], p[1][None]], 0)

    check(fun, [w, b], integers(3, (2, 6)))


def test_joined_with_itself():
    w = low_rank(1, (4, 5), (0,), (1,), 2)
    check(join_and_multiply(0), [w, w], integers(2, (8, 5)))
    check(lambda w, x: jnp.einsum("ij,ij->", lax.concatenate([w, w], 1), x), w, integers(2, (4, 10)))
