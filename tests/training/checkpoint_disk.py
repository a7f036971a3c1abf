"""What a small disk does to the checkpoints on it; run with root's rights over mounts.

python -m tests.training.checkpoint_disk FOLDER  # an empty folder, in which disks of 2 MiB are mounted
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from eggroll.training.checkpoints import arrays as checkpoints_arrays
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.errors import RunError
from eggroll.training.folder.files import FolderLock
from tests.training.checkpoint_states import assert_same, small


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def fails(checkpoints: Checkpoints, generation: int, state: object, message: str) -> None:
    """The save fails with `message`, and the earlier ones are untouched."""
    before = checkpoints.generations()
    try:
        checkpoints.save(generation, state, {})
        checkpoints.wait()
    except RunError as why:
        assert re.search(message, str(why)), why
    else:
        raise AssertionError("the save did not fail")
    assert checkpoints.generations() == before
    found = checkpoints.restore(small(0))
    assert found is not None and found.generation == checkpoints.generations()[-1]
    assert_same(found.state, small(found.generation))


def main(folder: Path) -> None:
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder))
    large = {"weights": jnp.asarray(np.random.default_rng(0).normal(size=1_000_000).astype(np.float32))}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        fails(checkpoints, 2, large, "Generation 2 .*: the disk is full. Free some space")
        checkpoints.save(3, small(3), {})  # the space is there again
        checkpoints.wait()
        fill = folder / "fill"
        with fill.open("wb") as file:
            try:
                while True:
                    os.write(file.fileno(), bytes(4096))
            except OSError:
                pass
        fails(checkpoints, 4, small(4), "the disk is full")
        with FolderLock(folder):  # its text needs no room to hold
            pass
        fill.unlink()
        mount("-o", "remount,ro", str(folder))
        fails(checkpoints, 5, small(5), "the folder cannot be written. Make it writable")
        try:
            FolderLock(folder / "new").__enter__()
            raise AssertionError("the folder was locked")
        except RunError as why:
            assert "cannot be written: Read-only file system" in str(why)
        mount("-o", "remount,rw", str(folder))
        checkpoints.save(6, small(6), {})
        checkpoints.wait()
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["1", "3", "6"]
    print("done")


if __name__ == "__main__":
    for small_enough in (checkpoints_arrays.SMALL, 0):  # for one file; larger ones are TensorStore's
        checkpoints_arrays.SMALL = small_enough
        disk = Path(sys.argv[1]) / str(small_enough)
        disk.mkdir()
        main(disk)
