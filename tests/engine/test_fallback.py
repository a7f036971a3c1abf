"""What happens, and what is said, where a perturbed weight has to be made dense."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from eggroll.engine.factored import factored, trace
from eggroll.engine.interpreter import DenseFallbackError, DenseFallbackWarning, Interpreter, Policy, check_fallback
from eggroll.engine.lowrank import LowRank, Source, as_perturbed, is_low_rank
from tests.engine.truth import check, dense, integers, jit, low_rank, member_axes

W = low_rank(1, (6, 8), (0,), (1,), 2, members=None)
X = integers(2, (2, 6))


def named(leaf: LowRank, path: str, members: int | None) -> LowRank:
    return replace(leaf, source=Source(path, members))


def sines(w, x):
    return x @ jnp.sin(w)  # the line that messages name


def records(fun, *args):
    """Every fallback of a function."""
    policy = Policy("allow")
    trace(fun, args).evaluate(Interpreter(policy), args)
    return policy.records


def test_the_result_is_right_under_every_policy_that_gives_one():
    want = X @ jnp.sin(jnp.asarray(dense(W).astype(np.float32)))
    np.testing.assert_allclose(factored(sines, fallback="allow")(W, X), want, rtol=1e-5, atol=1e-5)
    with pytest.warns(DenseFallbackWarning):
        np.testing.assert_allclose(factored(sines)(W, X), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(DenseFallbackError):
        factored(sines, fallback="error")(W, X)


@pytest.mark.parametrize(
    ("members", "size"),
    [(None, "0.000192 MB for each member"), (1024, "0.197 MB for the whole population of 1024")],
)
def test_the_message(members, size):
    """It names parameter, primitive, line and size, and says what to do."""
    line = inspect.getsourcelines(sines)[1] + 1
    with pytest.raises(DenseFallbackError) as caught:
        factored(sines, fallback="error")(named(W, "decoder/kernel", members), X)
    message = str(caught.value)
    for part in (
        "parameter 'decoder/kernel' is made dense for `sin`", f"test_fallback.py:{line} (sines)",
        "(no rule for this primitive)", size, "Rewrite the line", '"dense" or "frozen" rule', 'fallback="allow"',
    ):  # fmt: skip
        assert part in message
    with pytest.warns(DenseFallbackWarning) as warned:
        factored(sines)(named(W, "decoder/kernel", members), X)
    assert message.startswith(str(warned[0].message)) and len(warned) == 1


def test_factored_names_parameters_by_their_paths_and_speaks_of_its_population():
    def fun(params, x, *, more):
        return sines(params["decoder"][1]["kernel"], x) + sines(more["bias"], x)

    unnamed = replace(W, source=Source())
    params = {"decoder": [None, {"kernel": unnamed}]}
    with pytest.warns(DenseFallbackWarning) as warned:
        factored(fun, population=1024)(params, X, more={"bias": unnamed})
    first, second = (str(w.message) for w in warned)
    assert "parameter 'decoder/1/kernel'" in first and "0.197 MB for the whole population of 1024" in first
    assert "parameter 'bias'" in second
    with pytest.warns(DenseFallbackWarning, match="parameter '0' .* for each member"):
        factored(sines)(unnamed, X)
    with pytest.warns(DenseFallbackWarning, match="parameter 'mine' .* population of 6"):
        factored(sines, population=1024)(named(W, "mine", 6), X)


def test_the_record():
    (record,) = records(sines, named(W, "kernel", 100), X)
    assert (record.path, record.primitive, record.members) == ("kernel", "sin", 100)
    assert record.bytes == 100 * 6 * 8 * 4
    assert record.reason == "no rule for this primitive"
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), W)
    (record,) = records(sines, named(narrow, "", None), X.astype(jnp.bfloat16))
    assert (record.path, record.members, record.bytes) == ("", None, 6 * 8 * 2)
    assert "'<unnamed>'" in str(record)


def test_the_bytes_are_those_of_the_value_made_dense():
    """Of one layer of a stack, of a slice; and those of every parameter that has a share in the value."""
    stack = low_rank(1, (3, 6, 8), (0, 1), (0, 2), members=None)
    assert [r.bytes for r in records(lambda w: jnp.sin(w[1]), stack)] == [6 * 8 * 4]
    pair = [named(W, "a", 10), named(W, "b", 20)]
    found = records(lambda p: jnp.sin(p[0] + p[1]), pair)
    assert [(r.path, r.bytes) for r in found] == [("a", 10 * 192), ("b", 20 * 192)]
    thin = [
        named(low_rank(i, shape, (0,), (1,), members=None), p, None)
        for i, shape, p in ((1, (2, 9), "a"), (2, (9, 2), "b"))
    ]
    found = records(lambda p: integers(3, (4, 2)) @ (p[0] @ p[1]), thin)
    assert {(r.path, r.reason) for r in found} == {(p, "a product of weights, after which all is dense") for p in "ab"}


def test_a_returned_parameter():
    found = records(lambda w: {"w": w, "x": 2 * w}, named(W, "kernel", None))
    assert [(r.primitive, r.line) for r in found] == [("the output", "the end of the function")]
    check(lambda w: (w, w.T), low_rank(1, (3, 4), (0,), (1,)), fallback="allow")


def test_no_duplicates():
    """One record for one line, however often it is evaluated or traced; two for two lines."""

    def many(w, x):
        x = lax.scan(lambda h, _: (jnp.cos(h @ jnp.sin(w)), None), x, None, length=3)[0]
        x = lax.fori_loop(0, jnp.int32(2), lambda i, h: lax.cond(i > 0, lambda: h @ jnp.exp(w), lambda: h), x)
        return x + (x @ jnp.exp(w)).sum() + (x @ jnp.exp(w)).sum()

    square = named(low_rank(1, (6, 6), (0,), (1,), members=None), "w", None)
    found = [r.primitive for r in records(many, square, X)]
    assert sorted(found) == ["exp", "exp", "sin"]
    with pytest.warns(DenseFallbackWarning) as warned:
        jit(factored(many))(square, X)
    assert len(warned) == 3


def test_nothing_is_said_where_a_rule_applies():
    def fun(w, x):
        y = lax.scan(lambda h, _: (h, h @ w), x, None, length=2)[1]
        return jax.checkpoint(lambda y: y @ w.T)(y) + lax.cond(True, lambda: 1.0, lambda: (x @ w).sum())

    assert records(fun, W, X) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factored(fun)(W, X)


def test_nothing_is_said_of_code_whose_result_is_not_used():
    def fun(w, x):
        jnp.sin(w)
        lax.scan(lambda c, _: (c, jnp.exp(w)), 0.0, None, length=2)
        return x @ w

    assert records(fun, W, X) == []


OTHERS = {
    "reduce": lambda w, x: x @ w - w.sum(0) - w.max(0) + w.mean(),
    "reduce with a function": lambda w, x: lax.reduce(w, np.float32(1), lax.mul, (0,)),
    "cumulative sum": lambda w, x: x @ jnp.cumsum(w, 1),
    "sort": lambda w, x: (x @ jnp.sort(w, 0), jnp.argmax(w)),
    "pad": lambda w, x: jnp.pad(x, ((0, 0), (1, 1))) @ jnp.pad(w, 1),
    "tile": lambda w, x: jnp.tile(x, (1, 2)) @ jnp.tile(w, (2, 1)),
    "repeat": lambda w, x: jnp.repeat(x, 2, 1) @ jnp.repeat(w, 2, 0),
    "roll": lambda w, x: x @ jnp.roll(w, 1, 0),
    "mask": lambda w, x: x @ jnp.where(jnp.tri(6) > 0, w, 0.0),
    "scatter": lambda w, x: x @ w.at[jnp.array([1, 1]), 2].add(5.0),
    "update": lambda w, x: x @ lax.dynamic_update_slice(w, jnp.ones((2, 2)), (1, 3)),
    "updated into": lambda w, x: x @ lax.dynamic_update_slice(jnp.ones((6, 6)), w, (0, 0)),
    "solve": lambda w, x: jnp.linalg.solve(w + 50 * jnp.eye(6), x.T),
    "decompose": lambda w, x: jnp.linalg.cholesky(w @ w.T + jnp.eye(6)),
    "fft": lambda w, x: jnp.abs(jnp.fft.fft(w)),
    "window": lambda w, x: lax.reduce_window(w, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID"),
    "callback": lambda w, x: jax.pure_callback(np.tanh, w, w, vmap_method="sequential"),
    "debug callback": lambda w, x: jax.debug.callback(lambda w: None, w) or x @ w,
    "comparison": lambda w, x: (w > 0, jnp.isnan(w).any(), w.astype(jnp.int32)),
    "index of": lambda w, x: x[:, jnp.argmax(w, 1)],
}


@pytest.mark.parametrize("fun", OTHERS.values(), ids=OTHERS)
def test_what_no_rule_knows_is_right(fun):
    check(fun, low_rank(1, (6, 6), (0,), (1,), 2), X, fallback="allow", tolerance=1e-5)


def test_random_numbers_and_keys_are_ordinary_values():
    """Dropout: members share the key."""

    def fun(w, key, x):
        kept = jax.random.bernoulli(key, 0.5, (2, 8))
        noise = jax.vmap(lambda k: jax.random.randint(k, (8,), 0, 5))(jax.random.split(key, 2))
        return jnp.where(kept, x @ w, 0) + noise.astype(jnp.float32)

    check(fun, low_rank(1, (6, 8), (0,), (1,), 2), jax.random.key(0), X)


def test_other_arrays_are_not_spoken_of():
    """Nonlinear functions of plain parameters and of activations are ordinary code."""
    fun = lambda p, x: jnp.sin(jnp.tanh(x @ p["w"]) * jnp.exp(p["scale"]))  # noqa: E731
    assert records(fun, {"w": W, "scale": jnp.ones(8)}, X) == []


@pytest.mark.parametrize("mode", ["ignore", "", "Warn", None])
def test_an_unknown_policy(mode):
    with pytest.raises(ValueError, match="one of 'warn', 'allow', 'error' is required"):
        factored(sines, fallback=mode)
    with pytest.raises(ValueError, match="fallback="):
        Policy(mode)


@pytest.mark.parametrize("mode", ["warn", "allow", "error"])
def test_known_policies(mode):
    check_fallback(mode)
    assert Policy(mode).records == []


def test_the_dense_value_is_made_where_it_is_needed_only():
    """One use falls back; the other keeps its factors apart."""
    w = named(low_rank(1, (6, 8), (0,), (1,), members=5), "w", 5)
    fun = jax.vmap(factored(lambda w, x: (x @ w, jnp.sin(w).sum()), fallback="allow"), in_axes=(member_axes(w), None))
    jaxpr = jax.make_jaxpr(fun)(w, X).jaxpr
    base = jaxpr.invars[0]
    products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert any(base in e.invars for e in products)


def test_the_sum_is_made_in_float32():
    """The dense value that a fallback makes is rounded once."""
    w = low_rank(1, (40, 50), (0,), (1,), 6, members=None)
    w = jax.tree.map(lambda a: (a / 3).astype(jnp.bfloat16), w)
    got = factored(lambda w: lax.reduce_precision(w, 8, 7), fallback="allow")(w)
    truth, magnitude = dense(w), dense(jax.tree.map(jnp.abs, w))
    rounding = 2.0**-8 * np.abs(truth) + 8 * np.finfo(np.float32).eps * magnitude
    assert np.all(np.abs(np.asarray(got, np.float64) - truth) <= rounding)


def test_wrong_arguments_are_refused():
    program = trace(lambda w, x: x @ w, (W, X))
    with pytest.raises(TypeError, match="traced with"):
        program.evaluate(Interpreter(Policy("error")), (W,))
    with pytest.raises(ValueError, match="require"):
        factored(lambda w: w)(replace(W, left=W.right))


def test_a_perturbed_value_is_a_leaf():
    leaves = jax.tree.leaves({"w": W, "b": X}, is_leaf=is_low_rank)
    assert [is_low_rank(leaf) for leaf in leaves] == [False, True]
    assert as_perturbed(W).shape == (6, 8) and as_perturbed(W).dtype == jnp.float32
