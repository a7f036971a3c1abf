import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import compile as bench_compile
from bench.compile import Case, Options, cases, figures, phases, summary

PHASES = bench_compile.PHASES


def row(network, depth, seconds):
    each = {f"{name}_{phase}": seconds[name] / 3 for name in ("step", "forward") for phase in PHASES}
    return {"network": network, "depth": depth, "width": 256, "population": 256, **each} | {
        "compile_ratio": 2.0,
        "total_ratio": 3.0,
    }


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
    found = cases(Options(depths=(6, 12), widths=(64, 256), populations=(64, 256), mlp_depths=(3,)))
    assert found == [
        Case("transformer", 6, 256, 256),
        Case("transformer", 12, 256, 256),
        Case("transformer", 12, 64, 256),
        Case("transformer", 12, 256, 64),
        Case("mlp", 3, 256, 256),
    ]


def test_figures_are_medians_of_the_rounds_own_ratios():
    forward = np.array([[1.0, 1, 2], [1, 1, 4], [1, 1, 8]])
    step = np.array([[1.0, 1, 4], [2, 2, 12], [3, 3, 32]])
    found = figures({"forward": forward, "step": step, "backprop": 2 * forward})
    assert found["step_compile"] == 12
    assert found["compile_ratio"] == 3  # of 2, 3 and 4
    assert found["total_ratio"] == pytest.approx(16 / 6)
    assert found["total_over_backprop"] == pytest.approx(16 / 12)


def test_the_summary_tells_growth_from_6_layers_to_24():
    rows = [row("transformer", d, {"step": 10 + d, "forward": 8.0}) for d in (6, 12, 24)]
    rows += [row("mlp", d, {"step": 2.0 * d, "forward": d}) for d in (6, 24)]
    rows += [row("transformer", 12, {"step": 99, "forward": 1}) | {"width": 64, "compile_ratio": 99.0}]
    assert summary(rows, Options()) == {
        "transformer_12_compile_ratio": 2.0,
        "transformer_12_total_ratio": 3.0,
        "transformer_step_growth_24_over_6": pytest.approx(34 / 16),
        "transformer_forward_growth_24_over_6": pytest.approx(1),
        "mlp_step_growth_24_over_6": pytest.approx(4),
        "mlp_forward_growth_24_over_6": pytest.approx(4),
    }


@pytest.mark.slow
def test_a_quick_run(capsys, tmp_path):
    bench_compile.main(["--quick", "--out", str(tmp_path / "kept.json")])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [r["network"] for r in found["rows"]] == ["transformer", "mlp"]
    for r in found["rows"]:
        assert 0 < r["compile_ratio"] < math.inf
        assert 0 < r["total_ratio"] < math.inf
