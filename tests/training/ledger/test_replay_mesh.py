"""A run on a mesh is rebuilt bit for bit on one like it, and elsewhere to rounding, which is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from eggroll.training.errors import RunError
from eggroll.training.ledger.mesh import laid_out, mesh_difference, mesh_like
from eggroll.training.ledger.rebuilding import replay
from tests.training.ledger_runs import mlp, run

pytestmark = pytest.mark.optimised  # bits, as users get them

ROOT = Path(__file__).parents[3]
RECORDED = {
    "axes": [["population", 2], ["model", 4]],
    "sharding": [["a/b", [[], ["model"]]], ["c", [["data", "model"]]]],
    "update": "weights",
}


@pytest.mark.slow
def test_runs_on_meshes_are_rebuilt(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    flags += " --xla_llvm_disable_expensive_passes=true"  # most of the time is compilation
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "tests.training.replay_mesh", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differ = dict(line.split() for line in done.stdout.splitlines())
    assert list(differ) == ["weights", "split", "members"]
    told = differ["weights"] == "True" and "True" in (differ["split"], differ["members"])
    assert told, "sums on one device are as on four: nothing here can tell layouts apart"


def test_the_layout_is_the_runs_as_far_as_the_mesh_has_its_axes():
    wide = AbstractMesh((2, 4, 1), ("population", "model", "data"))
    rules, update = laid_out(RECORDED, wide, None)
    assert (rules.pairs, update) == ((("a/b", P(None, "model")), ("c", P(("data", "model")))), "weights")
    assert laid_out(RECORDED, wide, [("a", P("data"))])[0].pairs == (("a", P("data")),)
    assert laid_out(RECORDED, AbstractMesh((8,), ("population",)), None)[0].pairs == ()
    assert laid_out(None, None, None)[1] == "members"


def test_a_mesh_that_this_process_has_no_devices_for():
    assert mesh_like(RECORDED) is None and mesh_like(None) is None
    alone = {"axes": [["population", 1]], "sharding": [], "update": "members"}
    assert dict(mesh_like(alone).shape) == {"population": 1}
    assert mesh_difference(alone, None) is None
    assert mesh_difference(RECORDED, None) == (
        "devices: population=2, model=4, by weights, a/b (None, 'model'), c ('data+model',) → one device"
    )


def test_a_mesh_that_is_none(tmp_path):
    run(tmp_path / "ledger.bin", 1)
    with pytest.raises(RunError, match=r"got mesh='auto'; a jax\.sharding\.Mesh, 'run' or None is required"):
        replay(mlp(), tmp_path / "ledger.bin", mesh="auto")
    state = replay(mlp(), tmp_path / "ledger.bin", mesh="run")
    assert len(jax.tree.leaves(state.params)[0].devices()) == 1
