"""Runs on meshes of four simulated devices, and their replays: on the same mesh, on another, on one device.

python -m tests.training.replay_mesh FOLDER
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import eggroll
from eggroll.training.folder.arrays import by_path, save_arrays
from eggroll.training.ledger.reader import Reader
from eggroll.training.ledger.rebuilding import Replay, replay
from eggroll.training.ledger.replay_files import replay_files
from tests.training.ledger_runs import assert_same_state, mlp, run, strategy

SPLIT = [("layers/0/kernel", P(None, "model")), ("layers/1/kernel", P("model"))]
CASES: dict[str, dict[str, Any]] = {
    "weights": {"axes": {"population": 4}, "update": "weights"},
    "split": {"axes": {"population": 2, "model": 2}, "update": "weights", "sharding": SPLIT},
    "members": {"axes": {"population": 2, "model": 2}, "update": "members", "sharding": SPLIT},
}


def mesh_of(axes: dict[str, int]) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(axes.values()), tuple(axes))


def check(name: str, folder: Path, warned: list[str]) -> None:
    case, path = CASES[name], folder / f"{name}.bin"
    mesh, base = mesh_of(case["axes"]), mlp(jnp.bfloat16 if name == "split" else jnp.float32)
    # Of sums of many numbers some round otherwise, whatever the processor: sums of eight did not on each.
    es = strategy(mesh=mesh, population=64, update=case["update"], sharding=case.get("sharding"))
    live = run(path, 3, es=es, base=base)[-1]
    (settings,) = (entry.content for entry in Reader(path) if hasattr(entry, "content"))
    assert dict(settings["mesh"]["axes"]) == case["axes"] and settings["mesh"]["update"] == case["update"]
    for given in ("run", mesh) if name == "weights" else ("run",):
        made = replay(base, path, mesh=given)
        assert_same_state(made, live)
        for a, b in zip(jax.tree.leaves(made.params), jax.tree.leaves(live.params), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (name, a.sharding, b.sharding)
    assert not warned
    alone = Replay(base, path)
    differ = close(alone.run().params, live.params)
    told = ", ".join(f"{axis}={size}" for axis, size in case["axes"].items()) + f", by {case['update']}"
    assert len(alone.elsewhere) == 1 and alone.elsewhere[0].startswith(f"devices: {told}"), alone.elsewhere
    assert alone.elsewhere[0].endswith(" → one device")
    if name == "weights":
        replay(base, path, generation=0)
        assert warned.pop().startswith("replayed to rounding, not bit for bit: devices: population=") and not warned
        other = Replay(base, path, mesh=mesh_of({"population": 2}))
        close(other.run().params, live.params)
        assert other.elsewhere == ["devices: population=4, by weights → population=2, by weights"]
        save_arrays(folder / "base.npz", by_path(base))
        done = replay_files(folder / "base.npz", path, folder / "out.npz")
        assert done.inexact == 0 and "bit for bit" in str(done)
        with np.load(folder / "out.npz") as file:
            assert all((file[at] == array).all() for at, array in by_path(live.params).items())
    print(name, differ)


def close(got: Any, want: Any) -> bool:
    """Raises unless equal to rounding; whether any bit differs."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    for a, b in pairs:
        rounding = 1e-2 if a.dtype == jnp.bfloat16 else 2e-6
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=rounding)
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)


def main(folder: Path) -> None:
    assert jax.device_count() == 4
    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())
    logging.getLogger("eggroll").addHandler(handler)
    for name in CASES:
        check(name, folder, warned)


if __name__ == "__main__":
    warnings.simplefilter("ignore", eggroll.RecompilationWarning)  # of one function on several meshes
    main(Path(sys.argv[1]))
