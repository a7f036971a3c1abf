"""`explain`: rows and table, dense fallbacks with their cost, and a plan that is the one sampling follows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import eggroll
from tests.strategy.common import KEY, X, Y, assert_close, centred, dense_of, descent, loss, params

MIXED = {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4), "gain": jnp.ones((6, 4)), "spare": jnp.ones(2)}


def mixed(p, x):
    """`gain` is made dense by the sine; `kernel` is used twice, once under a sine."""
    h = x @ p["kernel"] + p["bias"]
    return h.sum() + (x @ p["kernel"]).sum() + (x @ jnp.sin(p["kernel"])).sum() + jnp.vdot(p["gain"], p["gain"])


def test_rows_say_how_each_parameter_is_used():
    rows = {row.path: row for row in eggroll.explain(mixed, MIXED, jnp.ones((3, 6))).rows}
    assert list(rows) == ["bias", "gain", "kernel", "spare"]
    kernel = rows["kernel"]
    assert (kernel.shape, kernel.dtype, kernel.kind, kernel.rank) == ((6, 4), "float32", "low_rank", 1)
    assert (kernel.left_axes, kernel.right_axes, kernel.stack_axes, kernel.numbers) == ((0,), (1,), (), 10)
    assert kernel.use.startswith("dot_general") and "sin" in kernel.use
    assert {u.kind for u in kernel.uses} == {"product", "elementwise"}
    assert all("test_explain.py" in u.line for u in kernel.uses)
    assert rows["bias"].kind == "dense" and rows["bias"].numbers == 4
    assert rows["spare"].kind == "unused" and rows["spare"].use == "-" and rows["spare"].uses == ()
    with pytest.raises(AttributeError):
        _ = kernel.nothing


def test_fallbacks_name_place_reason_and_bytes_of_the_whole_population():
    explanation = eggroll.explain(mixed, MIXED, jnp.ones((3, 6)), population=50)
    (fallback,) = [f for f in explanation.fallbacks if f.primitive == "sin"]
    assert (fallback.path, fallback.members, fallback.bytes) == ("kernel", 50, 50 * 6 * 4 * 4)
    assert "test_explain.py" in fallback.line and fallback.reason
    assert "parameter 'kernel' is made dense for `sin`" in str(fallback) and "population of 50" in str(fallback)
    alone = [f for f in eggroll.explain(mixed, MIXED, jnp.ones((3, 6))).fallbacks if f.primitive == "sin"]
    assert alone[0].members is None and alone[0].bytes == 6 * 4 * 4
    assert "for each member" in str(alone[0])


def test_the_table_has_every_row_and_fallback():
    explanation = eggroll.explain(mixed, MIXED, jnp.ones((3, 6)), rank=2, population=4)
    table = str(explanation)
    for row in explanation.rows:
        line = next(text for text in table.splitlines() if f" {row.path} " in text)
        assert "x".join(map(str, row.shape)) in line
        assert (f"rank {row.rank}" if row.kind == "low_rank" else row.kind) in line
        assert str(row.numbers) in line
    assert f"{explanation.plan.numbers} random numbers per pair" in table
    assert table.count("dense fallback: parameter") == len(explanation.fallbacks) > 0
    assert "\x1b" not in table, "text without colours, whatever the terminal"


def test_a_function_without_fallbacks_has_none():
    explanation = eggroll.explain(loss, params(), X, Y)
    assert explanation.fallbacks == () and "fallback" not in str(explanation)


def test_shapes_will_do_for_parameters_and_arguments():
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params(), X, Y))
    assert eggroll.explain(loss, *shapes).plan == eggroll.explain(loss, params(), X, Y).plan


def test_rows_per_member_are_taken_off_the_arguments():
    def fun(p, x, scale):
        return (x @ p["kernel"]).sum() * scale

    rows = eggroll.explain(fun, MIXED, jnp.ones((8, 3, 6)), jnp.ones(8), in_axes=(0, 0), population=8).rows
    assert {row.path: row.kind for row in rows}["kernel"] == "low_rank"
    with pytest.raises(ValueError, match=r"got 7 rows along axis 0 .* one row per member \(8\)"):
        eggroll.explain(fun, MIXED, jnp.ones((7, 3, 6)), jnp.ones(8), in_axes=(0, None), population=8)


RULES = (("kernel", eggroll.LowRankRule(rank=2, sigma_scale=0.5)),)


def test_the_plan_explained_is_the_plan_sampled():
    """Members made from the explained plan give the very estimate that `value_and_grad` returns."""
    f = eggroll.value_and_grad(loss, population=6, sigma=0.1, rules=RULES)
    value, grads = f(params(), X, Y, key=KEY)
    plan = eggroll.explain(loss, params(), X, Y, rules=RULES).plan
    members = dense_of(plan, params(), KEY, 6, 0.1)
    losses = np.array(
        [loss(jax.tree.map(lambda a, i=i: a[i], members), np.asarray(X), np.asarray(Y)) for i in range(6)]
    )
    assert float(value) == pytest.approx(losses.mean(), rel=1e-5)
    scales = {"kernel": 0.5, "bias": 1.0}
    assert_close(grads, descent(members, params(), centred(-losses), 0.1, scales), 1e-4)


def test_bad_arguments():
    with pytest.raises(TypeError, match="got parameter 'n' of dtype int32"):
        eggroll.explain(lambda p: p["w"].sum(), {"w": jnp.ones(2), "n": jnp.arange(2)})
    with pytest.raises(ValueError, match="does not use its parameters"):
        eggroll.explain(lambda p, x: x, MIXED, jnp.ones(3))
    with pytest.raises(ValueError, match="decides for no parameter"):
        eggroll.explain(mixed, MIXED, jnp.ones((3, 6)), rules=[("nothing", "dense")])


D = 8
MASK = jnp.arange(D * D).reshape(D, D) % 3 > 0
DENSE_NOISE = {
    "sin": lambda p, m, x: x @ lax.map(jnp.sin, p["w"]),
    "mul": lambda p, m, x: x @ (p["w"] * m),
    "select_n": lambda p, m, x: x @ jnp.where(MASK, p["w"], 0),
    "max": lambda p, m, x: x @ jnp.clip(p["w"], -1, 1),
    "round": lambda p, m, x: x @ jnp.round(p["w"]),
    "dot_general": lambda p, m, x: x[:, :4] @ p["w"].reshape(4, 16),
    "exp": lambda p, m, x: lax.map(lambda column: x @ jnp.exp(column), p["w"]),
    "lu": lambda p, m, x: x * jnp.linalg.det(p["w"]),
    "mul, summed": lambda p, m, x: (x[:, :, None] * p["w"]).sum(1),
    "scan": lambda p, m, x: x @ lax.scan(lambda c, row: (c + row, c + row), jnp.zeros(D), p["w"])[1],
    "cond": lambda p, m, x: x @ lax.cond(x.sum() > 0, lambda w: w, jnp.zeros_like, p["w"]),
    "tril": lambda p, m, x: lax.scan(lambda h, _: (jnp.tanh(h @ jnp.tril(p["w"])), None), x, length=2)[0],
}


@pytest.mark.first(3)
@pytest.mark.parametrize("primitive", DENSE_NOISE)
def test_a_matrix_of_dense_noise_is_told_of(primitive):
    """A mask is an argument, or a constant; the policy of evaluation speaks as `explain` does."""
    fun, args = DENSE_NOISE[primitive], ({"w": jnp.ones((D, D))}, MASK.astype(jnp.float32), jnp.ones((3, D)))
    (told,) = eggroll.explain(fun, *args, population=16).fallbacks
    assert (told.path, told.bytes, told.factor) == ("w", 16 * 4 * D * D, D / 2) and "test_explain.py" in told.line
    assert told.primitive == primitive.partition(",")[0] or primitive == "tril"
    loss = lambda *args: fun(*args).sum()  # noqa: E731
    for rules in ((), [("w", "dense")]):
        estimate = eggroll.value_and_grad(loss, population=16, sigma=0.1, fallback="error", rules=rules)
        if rules:
            estimate(*args, key=jax.random.key(0))
        else:
            with pytest.raises(eggroll.DenseFallbackError, match="4 times as many numbers"):
                estimate(*args, key=jax.random.key(0))


def test_what_stands_beside_activations_is_not():
    """A table of positions, a scale of two axes, rows that a constant index picks for a product, loops' vectors."""

    def fun(p, x):
        h = (x + p["table"]) * p["scale"]
        h, _ = lax.scan(lambda h, b: (jnp.tanh((h * b) @ jnp.eye(D)) + (h @ b)[..., None], None), h, p["vectors"])
        h = lax.map(lambda pair: pair[0] * pair[1], (jnp.stack([h[0]] * D), p["mapped"])).sum(0)
        return (h @ p["w"][jnp.arange(D)[::-1]]).sum() + jnp.vdot(p["vectors"], p["vectors"])

    params = {name: jnp.ones((D, D)) for name in ("table", "scale", "vectors", "mapped", "w")}
    found = eggroll.explain(fun, params, jnp.ones((3, D, D)))
    kinds = {row.path: row.kind for row in found.rows}
    assert not found.fallbacks and kinds == dict.fromkeys(params, "dense") | {"w": "low_rank"}


def test_a_product_of_weights_that_is_dense_is_told_of():
    fun = lambda p, x: (x @ jnp.tanh(p["a"] @ p["b"])).sum()  # noqa: E731
    told = eggroll.explain(fun, {"a": jnp.ones((D, D)), "b": jnp.ones((D, D))}, jnp.ones((3, D))).fallbacks
    assert {f.path for f in told} == {"a", "b"}
