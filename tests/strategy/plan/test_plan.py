"""The plan: which axes each factor owns, by use or by shape; what rank a layer takes; what rules change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import eggroll
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.leaves import check_params, full_rank, make_plan
from tests.strategy.common import KEY, es


def plan_of(fun, params, *args, **options):
    """path → leaf plan, as sampling follows it."""
    return {leaf.path: leaf for leaf in eggroll.explain(fun, params, *args, **options).plan.leaves}


def described(plan):
    return {p: (leaf.kind, leaf.rank, leaf.left_axes, leaf.right_axes) for p, leaf in plan.items()}


SHAPES = {
    "kernel": (6, 4),
    "transposed": (5, 6),
    "bias": (4,),
    "embedding": (9, 6),
    "conv": (3, 4, 7),
    "heads": (6, 2, 3),
}
PARAMS = {k: jnp.zeros(s) for k, s in SHAPES.items()}


def network(p, ids):
    x = jnp.tanh(p["embedding"][ids])
    y = x @ p["kernel"] + p["bias"]
    z = jnp.einsum("bsd,dhk->bshk", x, p["heads"])
    c = lax.conv_general_dilated(y, p["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return c.sum() + z.sum() + (x @ p["transposed"].T).sum()


def test_axes_are_discovered_from_use():
    plan = plan_of(network, PARAMS, jnp.zeros((2, 8), int), rank=2)
    assert described(plan) == {
        "bias": ("dense", 0, (), ()),
        "conv": ("low_rank", 2, (0, 1), (2,)),
        "embedding": ("low_rank", 2, (0,), (1,)),
        "heads": ("low_rank", 2, (0,), (1, 2)),
        "kernel": ("low_rank", 2, (0,), (1,)),
        "transposed": ("low_rank", 2, (1,), (0,)),
    }
    assert plan["heads"].numbers == 2 * (6 + 6) and plan["conv"].numbers == 2 * (12 + 7) and plan["bias"].numbers == 4
    assert plan["heads"].left_shape == (6,) and plan["heads"].right_shape == (2, 3)


def test_axes_that_a_loop_or_a_batched_product_walks_are_the_stack():
    params = {"layers": jnp.zeros((3, 4, 4)), "biases": jnp.zeros((3, 4)), "experts": jnp.zeros((5, 4, 2))}

    def stacked(p, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w[0] + w[1]), None), x, (p["layers"], p["biases"]))
        return jnp.einsum("ebd,edf->ebf", jnp.broadcast_to(x, (5, *x.shape)), p["experts"]).sum()

    plan = plan_of(stacked, params, jnp.zeros((2, 4)))
    assert plan["layers"].stack_axes == (0,) == plan["experts"].stack_axes
    assert described(plan) == {
        "biases": ("dense", 0, (), ()),
        "experts": ("low_rank", 1, (0, 1), (0, 2)),
        "layers": ("low_rank", 1, (0, 1), (0, 2)),
    }
    assert plan["layers"].numbers == 3 * (4 + 4), "every layer has factors of its own"


def test_without_a_function_matrices_are_split_before_the_last_axis():
    leaves = make_plan({"a": jnp.zeros((3, 4, 5)), "b": jnp.zeros(3), "c": jnp.zeros(())}, None, rank=2).leaves
    assert [(p.kind, p.left_axes, p.right_axes) for p in leaves] == [
        ("low_rank", (0, 1), (2,)),
        ("dense", (), ()),
        ("dense", (), ()),
    ]


def test_a_rank_beyond_some_layers_gives_those_dense_noise():
    params = {"wide": jnp.zeros((8, 18)), "narrow": jnp.zeros((8, 3)), "column": jnp.zeros((8, 1))}

    def fun(p, x):
        return (x @ p["wide"]).sum() + (x @ p["narrow"]).sum() + (x @ p["column"]).sum()

    kinds = {
        r: {p: leaf.kind for p, leaf in plan_of(fun, params, jnp.zeros((1, 8)), rank=r).items()} for r in (1, 2, 4)
    }
    assert kinds[1] == {"wide": "low_rank", "narrow": "low_rank", "column": "dense"}
    assert kinds[2] == kinds[1]
    assert kinds[4] == {"wide": "low_rank", "narrow": "dense", "column": "dense"}
    # Dense where it is cheaper is no mistake, however many layers that are.
    assert plan_of(fun, params, jnp.zeros((1, 8)), rank=7)["wide"].kind == "dense"
    with pytest.raises(
        ValueError, match=r"got rank=9, beyond every layer: the largest full rank is 8 \('wide'\).*1 to 8"
    ):
        plan_of(fun, params, jnp.zeros((1, 8)), rank=9)


def test_dense_noise_where_factors_would_be_no_fewer_numbers():
    """rank·(m+n) ≥ m·n, of every layer of a stack; a rule decides for itself, and earlier versions had factors."""
    params = {"square": jnp.zeros((2, 2)), "stack": jnp.zeros((3, 4, 4)), "wide": jnp.zeros((4, 5))}

    def fun(p, x):
        return (
            (x @ p["wide"]).sum()
            + (x[:, :2] @ p["square"]).sum()
            + jnp.einsum("lbi,lij->lbj", jnp.stack([x] * 3), p["stack"]).sum()
        )

    def kinds(**options):
        return [leaf.kind for leaf in plan_of(fun, params, jnp.zeros((1, 4)), **options).values()]

    assert kinds(rank=1) == ["dense", "low_rank", "low_rank"]
    assert kinds(rank=2) == ["dense", "dense", "low_rank"]
    assert kinds(rank=2, rules=[("square|stack", "low_rank")]) == ["low_rank"] * 3
    assert eggroll.ES(rank=2, small_layers="low_rank").plan_for(params).leaves[0].kind == "low_rank"
    explained = eggroll.explain(fun, params, jnp.zeros((1, 4)), rank=2)
    assert [row.reason for row in explained.rows] == ["rank·(m+n) = 8 ≥ m·n = 4", "rank·(m+n) = 48 ≥ m·n = 48", ""]
    assert "dense: rank·(m+n) = 8" in " ".join(str(explained).split())
    with pytest.raises(ValueError, match=r"got small_layers='factors'; one of 'dense', 'low_rank' is required"):
        eggroll.ES(small_layers="factors")  # type: ignore[arg-type]


def test_a_rules_rank_beyond_its_layer_is_an_error():
    def fun(p, x):
        return (x @ p["w"]).sum()

    rules = [("w", eggroll.LowRankRule(rank=3))]
    with pytest.raises(
        ValueError, match=r"rule for 'w' asks for rank 3, but .* shape \(8, 2\) has full rank 2: use a rank"
    ):
        plan_of(fun, {"w": jnp.zeros((8, 2))}, jnp.zeros((1, 8)), rules=rules)
    # The strategy's own rank does not matter to a layer with a rank of its own.
    params = {"w": jnp.zeros((8, 2)), "v": jnp.zeros((8, 18))}
    rules = [("w", eggroll.LowRankRule(rank=2))]
    plan = plan_of(lambda p, x: fun(p, x) + (x @ p["v"]).sum(), params, jnp.zeros((1, 8)), rank=5, rules=rules)
    assert (plan["w"].rank, plan["v"].rank) == (2, 5)


def test_rules_override_discovery():
    params = {"w": jnp.zeros((4, 3)), "v": jnp.zeros((4, 3)), "b": jnp.zeros(3), "t": jnp.zeros((2, 3, 4))}
    rules = [
        ("w", eggroll.DenseRule(sigma_scale=0.5)),
        ("b", "low_rank"),
        ("t", eggroll.LowRankRule(left_axes=(0, 1), right_axes=(0, 2), sigma_scale=2.0)),
        ("v", "frozen"),
    ]

    def fun(p, x):
        return (x @ p["w"] + x @ p["v"] + p["b"]).sum() + p["t"].sum()

    plan = plan_of(fun, params, jnp.zeros((1, 4)), rules=rules)
    assert described(plan) == {
        "b": ("low_rank", 1, (), (0,)),
        "t": ("low_rank", 1, (0, 1), (0, 2)),
        "v": ("frozen", 0, (), ()),
        "w": ("dense", 0, (), ()),
    }
    assert (plan["w"].sigma_scale, plan["t"].sigma_scale) == (0.5, 2.0)


@pytest.mark.parametrize("axes", [((0,), (2,)), ((0, 1), ()), ((0, 0), (1, 2)), ((0, 1), (2, 3)), ((-3, 1), (2,))])
def test_a_rules_axes_name_every_axis_once(axes):
    rule = eggroll.LowRankRule(left_axes=axes[0], right_axes=axes[1])
    with pytest.raises(
        ValueError, match=r"rule for 't' gives left_axes.*must name every axis of the shape \(2, 3, 4\)"
    ):
        make_plan({"t": jnp.zeros((2, 3, 4))}, None, rules=[("t", rule)])


def test_frozen_leaves_may_hold_integers_and_keys():
    params = {"w": jnp.zeros((4, 3)), "table": jnp.arange(3), "key": jax.random.key(0)}
    kinds = {p.path: p.kind for p in make_plan(params, None, rules=[("table|key", "frozen")]).leaves}
    assert kinds == {"w": "low_rank", "table": "frozen", "key": "frozen"}


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.zeros(3, bool), jax.random.key(0)])
def test_what_is_not_floating_point_has_to_be_frozen(leaf):
    for check in (lambda p: make_plan(p, None), check_params, lambda p: es().init(p, KEY)):
        with pytest.raises(TypeError, match=r"got parameter 'layer/n' of dtype .*only floating-point.*\"frozen\""):
            check({"layer": {"n": leaf}, "w": jnp.zeros((2, 2))})


def test_unused_and_empty_parameters_are_left_alone():
    params = {"w": jnp.zeros((4, 3)), "unused": jnp.zeros((5, 5)), "empty": jnp.zeros((0, 3))}
    plan = plan_of(lambda p, x: (x @ p["w"]).sum(), params, jnp.zeros((1, 4)))
    assert {p: leaf.kind for p, leaf in plan.items()} == {"w": "low_rank", "unused": "unused", "empty": "unused"}
    assert plan["unused"].numbers == plan["empty"].numbers == 0


def test_nothing_to_perturb_is_an_error():
    params = {"w": jnp.zeros((4, 3))}
    with pytest.raises(ValueError, match=r"does not use its parameters \(w\).*Check that it reads its first argument"):
        plan_of(lambda p, x: x.sum(), params, jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match='every parameter is "frozen"'):
        make_plan(params, None, rules=[(".*", "frozen")])
    for empty in ({}, None, [], {"a": None}):
        with pytest.raises(ValueError, match="without a single array"):
            make_plan(empty, None)


def test_paths_are_names_joined_by_slashes():
    tree = {"layers": [{"w": 1}, (2, 3)], "b": None, "c": {"value": 4}}
    assert leaf_paths(tree) == ["c/value", "layers/0/w", "layers/1/0", "layers/1/1"]


@pytest.mark.parametrize(
    ("left", "right", "expected"), [((0,), (1,), 3), ((0, 1), (0, 2), 4), ((0, 1), (2,), 5), ((), (0, 1, 2), 1)]
)
def test_full_rank_is_the_smaller_own_side(left, right, expected):
    shape = {2: (3, 7)}.get(len({*left, *right}), (3, 4, 5))
    assert full_rank(shape, left, right) == expected
