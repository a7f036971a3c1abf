"""Members: what `apply` evaluates is what `materialize` shows; nothing else is ever built."""

from __future__ import annotations

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
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

pytestmark = pytest.mark.optimised  # bits, as users get them

N, SIGMA = 6, 0.1


@functools.cache
def members(**options):
    strategy = es(N, SIGMA, **options)
    return strategy.ask(strategy.init(params(), KEY))


def outputs(p, x):
    """A pytree with a dtype of each kind."""
    h = x @ p["kernel"] + p["bias"]
    return {
        "h": h,
        "count": jnp.sum(h > 0, dtype=jnp.int32),
        "key": jax.random.fold_in(KEY, jnp.sum(h > 0)),
        "none": None,
    }


def test_apply_evaluates_the_dense_members():
    out = members().apply(outputs, X)
    stacked = dense(members())
    assert out["none"] is None and {k: v.shape for k, v in out.items() if k != "none"} == {
        "h": (N, 5, 3),
        "count": (N,),
        "key": (N,),
    }
    expected = np.einsum("bi,nij->nbj", np.asarray(X, np.float64), stacked["kernel"]) + stacked["bias"][:, None]
    np.testing.assert_allclose(out["h"], expected, atol=1e-5)
    np.testing.assert_array_equal(out["count"], (expected > 0).sum((1, 2)))


def test_one_member_is_one_row_of_all():
    stacked = jax.vmap(members().materialize)(jnp.arange(N))
    for i in (0, 3, N - 1):
        one = members().materialize(i)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), one) == jax.tree.map(lambda a: (a.shape, a.dtype), params())
        assert_same_bits(one, jax.tree.map(lambda a, i=i: a[i], stacked))
        for index in (np.int64(i), jnp.int32(i)):
            assert_same_bits(members().materialize(index), one)
    change = np.asarray(stacked["kernel"] - params()["kernel"])
    np.testing.assert_allclose(np.abs(change), SIGMA, rtol=1e-4)
    assert all(np.linalg.matrix_rank(c, tol=1e-3) == 1 for c in change)


@pytest.mark.parametrize("who", [[5, 0, 5], [6, 7, 2, 3]], ids=["alone", "pairs"])
@pytest.mark.parametrize("strategy", [eggroll.ES, eggroll.FullRankES])
def test_some_members_are_evaluated_as_among_all(strategy, who):
    """Each with an argument of its own."""
    opt = strategy(population=8, sigma=0.1)
    members, x = opt.ask(opt.init({"w": jnp.ones((3, 2))}, KEY)), jnp.arange(24.0).reshape(8, 3)

    def product(params, x):
        return x @ params["w"]

    every = members.apply(product, x, in_axes=0)
    assert_same_bits(members.some(who, product, x[np.array(who)], in_axes=0), every[np.array(who)])


def test_members_that_are_evaluated_together_are_not_asked_for_one_by_one():
    opt = eggroll.ES(population=8, sigma=0.1, mesh=jax.make_mesh((1,), ("population",)))
    with pytest.raises(ValueError, match=r"got some of the members on a mesh.* use members\.apply"):
        opt.ask(opt.init({"w": jnp.ones(2)}, KEY)).some([0], lambda params: params["w"])
    opt = eggroll.ES(population=8, sigma=0.1)
    with pytest.raises(IndexError, match="got member 8"):
        opt.ask(opt.init({"w": jnp.ones(2)}, KEY)).some([1, 8], lambda params: params["w"])


@pytest.mark.parametrize("index", [-1, N, 100])
def test_there_is_no_such_member(index):
    with pytest.raises(IndexError, match=rf"got member {index}; members are numbered 0 to {N - 1}"):
        members().materialize(index)


@pytest.mark.parametrize("index", [1.0, "0", None])
def test_an_index_is_an_integer(index):
    with pytest.raises(TypeError):
        members().materialize(index)


def test_members_are_a_sequence():
    each = list(members())
    assert len(each) == N
    for i in range(-N, N):
        assert_same_bits(members()[i], each[i])
    for part in (slice(None), slice(-2, None), slice(4, 1, -2), slice(9, None)):
        found = members()[part]
        assert len(found) == len(each[part])
        jax.tree.map(np.testing.assert_array_equal, found, each[part])
    for index in (N, -N - 1):
        with pytest.raises(IndexError, match=f"got member {index}"):
            members()[index]
    with pytest.raises(TypeError):
        members()[1.0]
    assert_same_bits(jax.jit(lambda i: members()[i])(2), each[2])


def test_len_and_repr():
    assert len(members()) == N
    assert repr(members()) == f"Members(population={N}, generation=0)"


def product_of_three(p, x):
    return jnp.einsum("bd,dhk->bhk", x, p["heads"])


def test_the_first_function_fixes_the_plan():
    """By use, an attention kernel's first axis is one side; by shape it would be its first two."""
    heads = {"heads": jnp.zeros((4, 2, 3))}
    for first in ("apply", "step"):
        strategy = eggroll.ES(population=N, sigma=SIGMA)
        state = strategy.init(heads, KEY)
        asked = strategy.ask(state)
        if first == "apply":
            asked.apply(product_of_three, X)
        else:
            strategy.step(state, lambda p, x: product_of_three(p, x).sum(), X)
        (leaf,) = asked.plan.leaves
        assert (leaf.left_axes, leaf.right_axes) == ((0,), (1, 2))
        assert strategy.ask(state).plan is asked.plan, "later generations have the same plan"


def test_without_a_function_the_plan_goes_by_shape():
    strategy = eggroll.ES(population=N, sigma=SIGMA)
    state = strategy.init({"heads": jnp.zeros((4, 2, 3))}, KEY)
    shown = strategy.ask(state)
    before = shown.materialize(1)
    (leaf,) = shown.plan.leaves
    assert (leaf.left_axes, leaf.right_axes) == ((0, 1), (2,))
    # What was shown is what will be evaluated and summed, whatever function comes.
    got = shown.apply(product_of_three, X)
    np.testing.assert_allclose(got[1], np.einsum("bd,dhk->bhk", X, before["heads"]), atol=1e-5)
    assert_same_bits(shown.materialize(1), before)


def test_a_parameter_that_the_first_function_left_out_is_not_left_behind_in_silence():
    strategy = eggroll.ES(population=N, sigma=SIGMA)
    state = strategy.init({**params(), "empty": jnp.zeros((0, 3))}, KEY)
    members = strategy.ask(state)
    members.apply(lambda p, x: x @ p["kernel"], X)
    message = "the function uses bias, which the first function of these members did not use"
    with pytest.raises(ValueError, match=message):
        members.apply(fitness, X, Y)
    assert members.apply(lambda p, x: (x @ p["kernel"]).sum(), X).shape == (N,)


def test_gradient_of_given_weights():
    weights = jnp.asarray([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
    assert_close(members().gradient(weights), descent(dense(members()), params(), weights, SIGMA), 1e-4)


def test_ask_apply_and_materialize_under_jit():
    strategy = es(N, SIGMA)
    state = strategy.init(params(), KEY)

    @jax.jit
    def run(state, i):
        asked = strategy.ask(state)
        values = asked.apply(fitness, X, Y)
        return values, asked.materialize(i), strategy.tell(state, asked, values)[0]

    values, shown, new = run(state, 2)
    asked = strategy.ask(state)
    np.testing.assert_allclose(values, asked.apply(fitness, X, Y), rtol=1e-5)
    assert_close(shown, asked.materialize(2), 1e-6)
    assert_close(new.params, strategy.tell(state, asked, values)[0].params, 1e-6)


def test_unevaluated_members_can_be_scored_by_hand():
    """No function is ever traced: parameters go out, numbers come in."""
    strategy = es(N, SIGMA, 0.1, shaping="none", antithetic=False)
    state = strategy.init(params(), KEY)
    asked = strategy.ask(state)
    scores = [float(np.sum(np.asarray(asked.materialize(i)["kernel"])[0])) for i in range(N)]
    new, _ = strategy.tell(state, asked, scores)
    gradient = descent(dense(asked), params(), centred(scores, False), SIGMA)
    assert_close(new.params, jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * g, params(), gradient), 1e-5)


def test_compiled_functions_keep_no_parameters_alive():
    strategy = eggroll.ES(population=2, sigma=SIGMA)
    state = strategy.init({"w": jnp.zeros((2, 2))}, KEY)
    asked = strategy.ask(state)
    asked.materialize(0)
    asked.apply(lambda p: jnp.ones(2) @ p["w"])
    gone = weakref.ref(asked)
    del asked, state
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("make", [eggroll.ES, eggroll.FullRankES])
def test_weights_and_numbers_of_other_members_are_refused(make):
    members = make(population=4, sigma=0.1)
    members = members.ask(members.init({"w": jnp.ones(3)}, KEY))
    for weights in (np.ones(3), np.ones(8), np.ones((4, 2)), 1.0):
        with pytest.raises(ValueError, match=r"got weights of shape .*; one per member, \(4,\), is required"):
            members.gradient(weights)
    for who in ((), 2, np.zeros((1, 1), int)):
        with pytest.raises(ValueError, match=r"got .* as some members; a list of at least one number is required"):
            members.some(who, lambda p: p["w"].sum())


def test_held_members_draw_once(monkeypatch):
    """Members alone; pairs play in `tests/rl/test_rollouts.py`."""
    es = eggroll.ES(population=12, sigma=0.1, rank=3, antithetic=False, chunk=4)
    params = {"w": jnp.ones((9, 7)), "b": jnp.zeros(7)}
    state = es.init(params, jax.random.key(5))

    def act(params, x, power):
        return (x @ params["w"] + params["b"]) ** power

    x, axes = np.arange(12 * 9, dtype=np.float32).reshape(12, 9) / 100, (0, None)
    drawn, held = es.ask(state), es.ask(state).hold()
    expected = [drawn.apply(act, x + i, power, in_axes=axes) for i, power in ((0, 1), (1, 1), (1, 2))]
    first = held.apply(act, x, 1, in_axes=axes)
    monkeypatch.setattr("eggroll.strategy.noise.streams.Streams.draw", lambda *_: pytest.fail("drawn again"))
    again = [held.apply(act, x + 1, power, in_axes=axes) for power in (1, 2)]
    monkeypatch.undo()
    for one, other in zip(expected, [first, *again], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    fitness = np.arange(12.0)
    for one, other in zip(
        *(es.tell(state, members, fitness)[0].params.values() for members in (drawn, held)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
