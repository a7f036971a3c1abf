"""One of several processes that save and restore together.

python -m tests.training.checkpoint_processes FOLDER PORT PROCESSES INDEX
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec

from eggroll.training.checkpoints import manager as module
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import MANIFEST


def state(generation: int) -> dict[str, jax.Array]:
    """A matrix in parts over the processes' devices, and a key and a counter that each process has for itself."""
    mesh = jax.make_mesh((jax.device_count(),), ("population",))
    whole = np.random.default_rng(generation).normal(size=(8, 3)).astype(np.float32)
    sharding = NamedSharding(mesh, PartitionSpec("population"))
    parts = jax.make_array_from_callback(whole.shape, sharding, lambda where: whole[where])
    return {"weights": parts, "key": jax.random.key(generation), "generation": jnp.int32(generation)}


def check(checkpoints: Checkpoints, generation: int, skipped: int) -> None:
    found = checkpoints.restore(state(0))
    assert found is not None and found.generation == generation, found
    assert found.record == {"generation": generation} and len(found.skipped) == skipped
    want = state(generation)
    for mine, other in zip(found.state["weights"].addressable_shards, want["weights"].addressable_shards, strict=True):
        np.testing.assert_array_equal(np.asarray(mine.data), np.asarray(other.data))
    assert found.state["weights"].sharding == want["weights"].sharding
    for name in ("key", "generation"):
        assert (found.state[name] == want[name]).all()


def refused(call, message: str) -> None:
    try:
        call()
    except RunError as why:
        assert message in str(why), why
    else:
        raise AssertionError("no error")


def main(folder: Path, port: str, processes: str, index: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(index))
    first = jax.process_index() == 0
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.restore(state(0)) is None
        for generation in (1, 2, 3):
            checkpoints.save(generation, state(generation), {"generation": generation})
        checkpoints.wait()
        check(checkpoints, 3, 0)
        assert checkpoints.generations() == [2, 3]
        sync_global_devices("both have looked")
        if first:
            (folder / "3" / MANIFEST).unlink()
        check(checkpoints, 2, 1)
        # What fails in the first process only is an error in all of them, and the next save goes on.
        real = module.write_manifest
        if first:
            module.write_manifest = fail
        checkpoints.save(4, state(4), {"generation": 4})
        refused(checkpoints.wait, "the disk is full" if first else "Process 0 could not save its checkpoint")
        module.write_manifest = real
        checkpoints.save(5, state(5), {"generation": 5})
        checkpoints.wait()
        check(checkpoints, 5, 0)
        refused(lambda: checkpoints.restore(state(0), generation=9), "generation 9 is not in")
    print("done", flush=True)
    jax.distributed.shutdown()


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once, so that the other process is told and does not wait
