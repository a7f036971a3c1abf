"""`argnums` as `jax.value_and_grad` has it; and derivatives of an estimate, which are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from tests.strategy.common import KEY

A, B, C = {"a": jnp.arange(3.0)}, jnp.ones((3, 2)), jnp.full(2, 2.0)


def linear(a, b, c, *, scale=1.0):
    return scale * jnp.sum(a["a"] @ b + c)


def both(argnums, **options):
    f = eggroll.value_and_grad(linear, argnums=argnums, population=4096, sigma=0.1, antithetic=False, **options)
    return f(A, B, C, key=KEY, scale=2.0), jax.value_and_grad(linear, argnums=argnums)(A, B, C, scale=2.0)


@pytest.mark.parametrize(
    "argnums",
    [1, [2, 1], (-1, 0), *(pytest.param(each, marks=pytest.mark.slow) for each in (0, -1, (2,), (0, 2), np.int64(2)))],
)
def test_as_jax_has_it(argnums):
    (value, ours), (real, exact) = both(argnums)
    assert jax.tree.structure(ours) == jax.tree.structure(exact)
    assert float(value) == pytest.approx(float(real), rel=0.05)
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert np.vdot(got, want) > 0.95 * np.linalg.norm(got) * np.linalg.norm(want)


def test_the_other_arguments_keep_their_places_and_rows():
    rows = jnp.arange(8.0)[:, None] * jnp.ones(2)
    f = eggroll.grad(linear, argnums=1, population=8, sigma=0.1, in_axes=(None, 0), has_aux=False)
    assert f(A, B, rows, key=KEY).shape == B.shape
    first = eggroll.grad(lambda b, a, c: linear(a, b, c), population=8, sigma=0.1, in_axes=(None, 0))
    np.testing.assert_array_equal(f(A, B, rows, key=KEY), first(B, A, rows, key=KEY))


@pytest.mark.parametrize(
    ("argnums", "error", "text"),
    [
        (3, TypeError, r"got 3 positional arguments for argnums=3, which requires at least 4"),
        ((0, 5), TypeError, r"for argnums=\(0, 5\), which requires at least 6"),
        (-4, ValueError, r"got argnums=-4 for 3 positional arguments; numbers from -3 to 2 are required"),
        ((0, 0), ValueError, "names one of them twice"),
        ((2, -1), ValueError, "names one of them twice"),
        ("a", TypeError, "got argnums='a'; an integer or a sequence of integers is required"),
        (1.0, TypeError, "got argnums=1.0"),
        (True, TypeError, "got argnums=True"),
        (None, TypeError, "got argnums=None"),
        ((), ValueError, r"got argnums=\(\); at least one argument"),
    ],
)
def test_what_is_no_argument(argnums, error, text):
    with pytest.raises(error, match=text):
        both(argnums)


def of_value(p):
    return eggroll.value_and_grad(lambda p: jnp.sum(jax.nn.relu(p)), population=2, sigma=0.1)(p, key=KEY)[0]


def of_gradient(p):
    return eggroll.grad(lambda p: jnp.sum(p**2), population=2, sigma=0.1, fallback="allow")(p, key=KEY).sum()


def of_argument(x):
    return eggroll.value_and_grad(lambda p, x: jnp.sum(p * x), population=2, sigma=0.1)(jnp.ones(2), x, key=KEY)[0]


def of_member(p):
    es = eggroll.ES(population=2, sigma=0.1)
    return es.ask(es.init(p, KEY)).apply(jnp.sum).sum()


def of_captured(x):
    return eggroll.value_and_grad(lambda p: jnp.sum(p * x), population=2, sigma=0.1)(jnp.ones(2), key=KEY)[0]


def of_scores(x):
    es = eggroll.ES(population=2, sigma=0.1)
    state = es.init(jnp.ones(2), KEY)
    return es.tell(state, es.ask(state), x)[0].params.sum()


@pytest.mark.parametrize("fun", [of_value, of_gradient, of_argument, of_member, of_captured, of_scores])
def test_a_derivative_of_an_estimate_is_refused(fun):
    for derivative in (jax.grad(fun), lambda p: jax.jvp(fun, (p,), (p,))):
        with pytest.raises(NotImplementedError, match=r"got a derivative.*jax.grad\(loss_fn\)\(params, \*args\)"):
            derivative(jnp.ones(2))


@pytest.mark.parametrize("kind", [eggroll.ES, eggroll.FullRankES])
def test_arguments_by_name(kind):
    """Arrays and settings; rows per member stay those of the positional arguments."""
    es = kind(population=4, sigma=0.1)
    state = es.init({"w": jnp.ones((3, 2))}, KEY)

    def fitness(params, x, row=0.0, *, scale, twice=False):
        return -jnp.sum((x @ params["w"] * scale) ** 2) * (2 if twice else 1) + 0 * row

    def added(params, x, row=0.0, **named):
        return fitness(params, x, **named) + 100 * row

    def alone(params, x):
        return fitness(params, x, scale=jnp.float32(3), twice=True)

    want = es.step(state, alone, jnp.ones((2, 3)))[0]
    for args, axes in (((), None), ((jnp.arange(4.0),), (None, 0))):
        got = es.step(state, fitness, jnp.ones((2, 3)), *args, in_axes=axes, scale=jnp.float32(3), twice=True)[0]
        assert (got.params["w"] == want.params["w"]).all()
        members, named = es.ask(state), {"scale": jnp.float32(3), "twice": True}
        rows = [float(args[0][i]) if args else 0.0 for i in range(4)]
        dense = [added(members.materialize(i), jnp.ones((2, 3)), rows[i], **named) for i in range(4)]
        asked = members.apply(added, jnp.ones((2, 3)), *args, in_axes=axes, **named)
        np.testing.assert_allclose(asked, dense, rtol=1e-5)
        few = members.some([0, 1], added, jnp.ones((2, 3)), *(a[:2] for a in args), in_axes=axes, **named)
        np.testing.assert_allclose(few, dense[:2], rtol=1e-5)


def test_settings_are_chosen_by_a_function_whose_names_apply_has_too():
    es = eggroll.ES(population=8, sigma="auto")

    def fitness(p, x, *, chunk, fun):
        return -jnp.mean((x @ p["w"] - 1) ** 2) * chunk * fun

    state = es.init({"w": jnp.zeros((3, 2))}, KEY)
    assert es.step(state, fitness, jnp.ones((2, 3)), chunk=2.0, fun=1.0)[0].generation == 1
