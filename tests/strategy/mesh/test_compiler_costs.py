"""The layout's choice by the compiler's cost analysis, held to whole compiled programs and to the count by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from eggroll.strategy.mesh import compiler_costs
from eggroll.strategy.mesh.compiler_costs import compiled
from eggroll.strategy.mesh.costs import counted
from eggroll.strategy.mesh.layout import cheapest, update_costs
from eggroll.strategy.mesh.sharding import as_sharding
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.plan.leaves import Plan, make_plan
from eggroll.strategy.population import Population
from eggroll.strategy.update.low_rank import sum_noise

ADAM = optax.with_extra_args_support(optax.adam(0.1))
SHAPES = {
    "w": jax.ShapeDtypeStruct((96, 64), jnp.float32),
    "stack": jax.ShapeDtypeStruct((3, 64, 48), jnp.bfloat16),
    "b": jax.ShapeDtypeStruct((64,), jnp.float32),
}


@pytest.mark.parametrize(("distribution", "rank"), [("rademacher", 4), ("normal", 1)])
def test_the_parts_make_up_a_whole_compiled_sum(distribution, rank):
    """All units in one chunk: then XLA counts a compiled sum in full."""
    units = 32
    plan = make_plan(SHAPES, None, rank=rank)
    sampler = Sampler(plan, distribution, None)
    program = jax.jit(lambda w, key: sum_noise(plan, sampler, w, None, key, 0)).lower(
        jnp.ones(units), jax.random.key(0)
    )
    found = program.compile().cost_analysis()
    figures = compiled(plan, distribution, ADAM)
    told = units * (plan.numbers * figures.number + sum(figures.product(leaf) for leaf in plan.leaves))
    assert told == pytest.approx(found["flops"] + found.get("transcendentals", 0), rel=0.1)


def test_products_are_those_counted_by_hand():
    plan = make_plan(SHAPES, None, rank=4)
    figures, by_hand = compiled(plan, "rademacher", ADAM), counted("rademacher")
    for leaf in plan.leaves:
        assert by_hand.product(leaf) <= figures.product(leaf) <= 1.05 * by_hand.product(leaf), leaf.path
    assert by_hand.number < figures.number < 2 * by_hand.number


@pytest.mark.parametrize(
    ("optimizer", "least", "most", "moments"),
    [(optax.sgd(0.1), 1, 1.1, 0), (optax.adam(0.1), 10, 14, 2), (optax.lion(0.1), 4, 11, 1)],
)
def test_the_optimizer_is_the_runs(optimizer, least, most, moments):
    figures = compiled(make_plan(SHAPES, None), "rademacher", optax.with_extra_args_support(optimizer))
    assert least <= figures.change <= most and figures.moments == pytest.approx(moments, abs=1e-3)


def test_layers_that_are_alike_are_counted_once(monkeypatch):
    made = []
    real = compiler_costs._operations
    monkeypatch.setattr(compiler_costs, "_operations", lambda fun, *x: made.append(fun) or real(fun, *x))
    shape = jax.ShapeDtypeStruct((30, 20), jnp.float32)
    plan = make_plan({f"layer{i}": shape for i in range(9)}, None)
    figures = compiled(plan, "rademacher", ADAM)
    assert len({figures.product(leaf) for leaf in plan.leaves}) == 1
    assert len(made) <= 4  # a word, the numbers of one layer, its product, the optimizer


def costs(population=64, distribution="rademacher", shape=(4096, 4096), optimizer=ADAM):
    mesh = AbstractMesh((16,), ("population",))
    # A `Population` wants a mesh of devices, of which there is one here.
    settings = SimpleNamespace(**vars(Population(population, distribution=distribution)), units=population // 2)
    settings.mesh, settings.sharding = mesh, as_sharding(None, mesh)
    return update_costs(settings, lambda: make_plan({"w": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}, None), optimizer)


def test_the_choice_follows_the_population_and_the_noise():
    sizes = 2 ** np.arange(5, 26)
    turns = {}
    for distribution in ("rademacher", "normal"):
        chosen = [cheapest(costs(int(size), distribution)) for size in sizes]
        assert chosen[0] == "weights" and chosen[-1] == "members"
        turns[distribution] = chosen.index("members")
        assert chosen == ["weights"] * turns[distribution] + ["members"] * (len(sizes) - turns[distribution])
    # A normal number takes the compiler some 17 times the operations of a sign: all noise everywhere pays less long.
    assert 2 <= turns["rademacher"] - turns["normal"] <= 6


def test_a_compiler_that_counts_nothing_leaves_it_to_the_hand(monkeypatch):
    plan = make_plan({"w": jax.ShapeDtypeStruct((17, 13), jnp.float32)}, None)
    monkeypatch.setattr(compiler_costs, "_operations", lambda *_: 0.0)
    compiler_costs._number.cache_clear()
    compiler_costs._product.cache_clear()
    figures, by_hand = compiled(plan, "rademacher", ADAM), counted("rademacher")
    compiler_costs._number.cache_clear()
    compiler_costs._product.cache_clear()
    assert replace(figures, product=by_hand.product) == replace(by_hand, moments=pytest.approx(2, abs=0.01))
    assert figures.product(plan.leaves[0]) == by_hand.product(plan.leaves[0])


def test_an_optimizer_that_fails_is_left_to_es_init():
    def refuse(*_):
        raise KeyError("no")

    figures = compiled(Plan(()), "rademacher", optax.GradientTransformationExtraArgs(refuse, refuse))
    assert (figures.change, figures.moments) == (12, 2)
