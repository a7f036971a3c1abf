"""On meshes of simulated devices: the same noise to the last bit, the same run to rounding, and little that crosses."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from jax.sharding import AbstractMesh

import eggroll
from bench.tools.update_costs import RATES, update_cost
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import Population, as_sharding
from eggroll.strategy.state import make_placement
from tests.strategy import sharded

pytestmark = pytest.mark.optimised  # bits, as users get them

ROOT = pathlib.Path(__file__).parents[3]
QUICK = ("mlp,4x2,weights",)
GRADIENTS = "gradients,2x4,members"
# Every mesh, update and kind of parameters, each with several of the others, but not all with all: they share code.
ALL = ("mlp,2,auto", "mlp,4x2,members", "transformer,2x4,weights")
ALL += ("mixed,4,members", "mixed,8,weights", "bfloat16,2x4,members", "frozen,4x2,weights")


@functools.cache
def results(cases):
    """`(arrays by case and name, facts by case)` of a process with eight devices."""
    plain = tuple(dict.fromkeys(f"{case.split(',')[0]},none,auto" for case in cases))
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    flags += " --xla_llvm_disable_expensive_passes=true"  # most of the time is compilation
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    file = pathlib.Path(os.environ["PYTEST_SHARDED"]) / f"{abs(hash(cases))}.npz"
    command = [sys.executable, "-W", "error", "-m", "tests.strategy.sharded", str(file), *plain, *cases]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(file)
    arrays = {}
    for name in set(found.files) - {"facts"}:
        case, _, leaf = name.partition("|")
        arrays.setdefault(case, {})[leaf] = found[name]
    return arrays, json.loads(str(found["facts"]))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    os.environ["PYTEST_SHARDED"] = str(tmp_path_factory.mktemp("sharded"))
    yield
    results.cache_clear()


@pytest.mark.parametrize("case", QUICK)
def test_some_meshes(case):
    check(case, (*QUICK, GRADIENTS))


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_all_meshes(case):
    check(case, ALL)


def check(case, together):
    arrays, facts = results(together)
    got, want = arrays[case], arrays[f"{case.split(',')[0]},none,auto"]
    assert got.keys() == want.keys()
    for name in want:
        assert_alike(case, name, got[name], want[name])
    assert facts[case]["moved"] == [], "the state does not stay where it was"
    assert facts[case]["whole"], "a process could not read its metrics"
    assert facts[case]["compiled"] == 0, "compiled again after the first generation"
    assert facts[case]["forward"] == [], "something but fitness crosses the population in the forward pass"
    check_bytes(case, facts[case])
    check_specs(case, facts[case])


def assert_alike(case, name, got, want):
    if name.startswith("['materialize']"):
        np.testing.assert_array_equal(got, want, err_msg=f"{case} {name}")
        return
    # Half precision rounds sums that are split otherwise, and so fitness, which Adam's first steps amplify; the update
    # from given fitness is float32.
    half = case.startswith(("bfloat16", "frozen")) and not name.startswith("['told'][1]")
    tolerance = (0.03 if name.startswith(("['apply']", "['fitness']", "['told']")) else 0.2) if half else 2e-5
    error = np.abs(got.astype(np.float64) - want).max(initial=0)
    assert error <= tolerance * np.abs(want).max(initial=1e-30), f"{case} {name}: {error}"


def check_bytes(case, facts):
    """One all-gather of fitness; the rest is the update, as much as the arithmetic of the choice says."""
    problem, mesh, _ = case.split(",")
    fitness = 4 * sharded.POPULATION
    crossing = [(c["kind"], c["bytes"]) for c in facts["step"]]
    assert crossing.count(("all-gather", fitness)) >= 1
    assert all(c["times"] == 1 for c in facts["step"])
    made = sharded.PROBLEMS[problem]()
    fun = (lambda *a: made.fitness(*a)[0]) if made.has_aux else made.fitness
    plan = eggroll.explain(fun, made.params, *made.args, rules=(made.options or {}).get("rules", ())).plan
    # XLA gathers half precision as float32 on CPUs.
    plan = Plan(tuple(replace(leaf, dtype="float32") for leaf in plan.leaves))
    shape = AbstractMesh(sharded.MESHES[mesh], ("population", "model"))
    rules = as_sharding(made.sharding if shape.shape["model"] > 1 else None, shape)
    placement = make_placement(shape, rules, facts["update"], plan.leaves)
    update = update_cost(placement, plan, Population(sharded.POPULATION), RATES["cpu"]).crossing
    aux = 4 * 8 + 4 + 4 if made.has_aux else 0  # two means and a count
    norms = 2 * 4 * len(plan.leaves)  # of gradient and change, added up after each device squared its part
    total = sum(size for _, size in crossing)
    assert fitness + update <= total <= fitness + update + aux + norms, crossing


def check_specs(case, facts):
    """Moments lie as their parameters do; by weights they are split over the population, too."""
    _, mesh, update = case.split(",")
    specs = facts["specs"]
    if case.startswith("mlp") and "x" in mesh:
        assert specs["[0]['first']['kernel']"] == "P(None, 'model')"
        split = "P('population', 'model')" if update == "weights" else "P(None, 'model')"
        assert specs["[2][0].mu['first']['kernel']"] == specs["[2][0].nu['first']['kernel']"] == split
    if case.startswith("bfloat16") and "x" in mesh:
        assert ("population" in specs["[1][1]"]) == (update == "weights"), "master copies"


def test_gradients_lie_as_their_parameters():
    arrays, facts = results((*QUICK, GRADIENTS))
    for name, want in arrays["gradients,none,auto"].items():
        assert_alike(GRADIENTS, name, arrays[GRADIENTS][name], want)
    specs = {name: spec for name, spec in facts[GRADIENTS].items() if spec != "P()"}
    assert specs == {
        "['plain'][1]['first']['kernel']": "P(None, 'model')",
        "['plain'][1]['second']['kernel']": "P('model',)",
        "['nnx'][2]": "P('model',)",
    }


def test_the_runs_can_differ():
    """Members differ from each other, and three generations move the parameters."""
    arrays, _ = results((*QUICK, GRADIENTS))
    plain = arrays["mlp,none,auto"]
    assert len(set(plain["['apply']"].tolist())) == sharded.POPULATION
    first = sharded.PROBLEMS["mlp"]().params["first"]["kernel"]
    assert np.abs(plain["['params']['first']['kernel']"] - first).max() > 0.01
    assert np.abs(plain["['told'][0]['first']['kernel']"] - plain["['params']['first']['kernel']"]).max() > 0.01
