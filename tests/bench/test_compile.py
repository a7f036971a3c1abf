import contextlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from bench import compile as bench_compile
from bench.compile import Case, Options, cases, figures, phases, summary
from bench.tools.compile_limits import LEARNING_RATE, SIGMA, plainest, plainest_low_rank
from bench.tools.networks import deep_mlp, transformer

PHASES = bench_compile.PHASES


def row(network, depth, seconds):
    each = {f"{name}_{phase}": seconds[name] / 3 for name in ("step", "forward") for phase in PHASES}
    return {"network": network, "depth": depth, "width": 256, "population": 256, **each} | {
        "compile_ratio": 2.0,
        "compile_ratio_limit": 1.5,
        "compile_ratio_limit_low_rank": 1.6,
        "compile_ratio_backprop": 1.75,
        "compile_over_backprop": 1.25,
        "total_ratio": 3.0,
    }


@pytest.mark.slow
@pytest.mark.measured
def test_every_phase_starts_from_nothing():
    traced = []

    @jax.jit
    def function(x):
        traced.append(1)
        return jnp.sin(x) @ x

    x = jnp.ones((8, 8))
    function(x)
    times = phases(lambda: (function, (x,)))
    assert len(traced) == 2, "traced again, although it had been called before"
    assert len(times) == len(PHASES)
    assert all(t > 0 for t in times)


def test_depth_width_and_population_vary_one_at_a_time_and_no_case_comes_twice():
    found = cases(
        Options(depths=(6, 12), widths=(64, 256), populations=(64, 256), written_depths=(2,), mlp_depths=(3,))
    )
    assert found == [
        Case("transformer", 6, 256, 256),
        Case("transformer", 12, 256, 256),
        Case("transformer", 12, 64, 256),
        Case("transformer", 12, 256, 64),
        Case("written", 2, 256, 256),
        Case("mlp", 3, 256, 256),
    ]


def test_figures_are_medians_of_the_rounds_own_ratios():
    forward = np.array([[1.0, 1, 2], [1, 1, 4], [1, 1, 8]])
    step = np.array([[1.0, 1, 4], [2, 2, 12], [3, 3, 32]])
    others = {"backprop": 2 * forward, "limit": 1.5 * forward, "limit_low_rank": 1.75 * forward}
    found = figures({"forward": forward, "step": step, **others})
    assert found["step_compile"] == 12
    assert found["compile_ratio"] == 3  # of 2, 3 and 4
    assert found["compile_ratio_limit"] == 1.5
    assert found["compile_ratio_limit_low_rank"] == 1.75
    assert found["compile_ratio_backprop"] == 2
    assert found["total_ratio"] == pytest.approx(16 / 6)
    assert found["total_over_backprop"] == pytest.approx(16 / 12)


def test_the_summary_tells_growth_from_6_layers_to_24():
    rows = [row("transformer", d, {"step": 10 + d, "forward": 8.0}) for d in (6, 12, 24)]
    rows += [row("mlp", d, {"step": 2.0 * d, "forward": d}) for d in (6, 24)]
    rows += [row("transformer", 12, {"step": 99, "forward": 1}) | {"width": 64, "compile_ratio": 99.0}]
    assert summary(rows, Options()) == {
        "transformer_12_compile_ratio": 2.0,
        "transformer_12_compile_ratio_limit": 1.5,
        "transformer_12_compile_ratio_limit_low_rank": 1.6,
        "transformer_12_compile_ratio_backprop": 1.75,
        "transformer_12_compile_over_backprop": 1.25,
        "transformer_12_total_ratio": 3.0,
        "transformer_step_growth_24_over_6": pytest.approx(34 / 16),
        "transformer_forward_growth_24_over_6": pytest.approx(1),
        "mlp_step_growth_24_over_6": pytest.approx(4),
        "mlp_forward_growth_24_over_6": pytest.approx(4),
    }


@pytest.mark.slow
def test_the_limit_is_a_step_of_evolution():
    net = deep_mlp(depth=1, width=8, rows=4)
    function, (params, shapes, *args) = plainest(net, members=2)
    noise = jax.tree.map(lambda s: jax.random.normal(jax.random.key(1), s.shape), shapes)
    moved = function(params, noise, *args)
    expected = params
    for i in range(2):
        own = jax.tree.map(lambda e, i=i: e[i], noise)
        fitness = net.fitness(jax.tree.map(lambda p, e: p + SIGMA * e, params, own), *args)
        step = LEARNING_RATE / (2 * SIGMA) * fitness
        expected = jax.tree.map(lambda p, e, step=step: p + step * e, expected, own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moved, expected)


@pytest.mark.slow
def test_the_limit_of_low_rank_is_the_same_step_with_the_noise_that_its_factors_stand_for():
    """As the dense limit, given what `LowRank.dense` makes of the factors: stacked layers and heads included."""
    net = transformer(depth=2, width=64, tokens=8)
    plans = eggroll.explain(net.fitness, net.params, *net.rows(1)).plan.leaves
    function, (params, shapes, *args) = plainest_low_rank(net, members=2)
    factors = jax.tree.map(lambda s: jax.random.rademacher(jax.random.key(1), s.shape, s.dtype), shapes)
    leaves, tree = jax.tree.flatten(params)

    def noise(plan, leaf, drawn):
        if plan.kind == "dense":
            return drawn
        axes = plan.left_axes, plan.right_axes
        return jax.vmap(lambda left, right: eggroll.LowRank(jnp.zeros_like(leaf), left, right, *axes).dense())(*drawn)

    dense = tree.unflatten(map(noise, plans, leaves, factors))
    expected = plainest(net, members=2)[0](params, dense, *args)
    moved = function(params, factors, *args)
    change = jax.tree.map(lambda a, b: a - b, expected, params)
    assert all(jnp.any(x != 0) for x in jax.tree.leaves(change))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, expected)


def test_nothing_is_read_from_disk():
    before = jax.config.jax_enable_compilation_cache
    with bench_compile.no_compilation_cache():
        assert not jax.config.jax_enable_compilation_cache
    assert jax.config.jax_enable_compilation_cache == before


@pytest.mark.slow
def test_a_quick_run(capsys, tmp_path, monkeypatch):
    """Through the whole script, though here what is compiled is read from disk."""
    entered = []
    monkeypatch.setattr(bench_compile, "no_compilation_cache", lambda: contextlib.nullcontext(entered.append(True)))
    bench_compile.main(["--quick", "--out", str(tmp_path / "kept.json")])
    assert entered
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [r["network"] for r in found["rows"]] == ["transformer", "mlp"]
    for r in found["rows"]:
        assert 0 < r["compile_ratio"] < math.inf
        assert 0 < r["total_ratio"] < math.inf
