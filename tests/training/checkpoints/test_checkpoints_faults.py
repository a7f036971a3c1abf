"""A disk that does not take a checkpoint: said clearly, the earlier ones untouched, and the next save works."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.training.checkpoints import arrays as checkpoints_arrays
from eggroll.training.checkpoints import manager as module
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.errors import RunError
from eggroll.training.folder import integrity
from tests.training.checkpoint_states import assert_same, small

ROOT = Path(__file__).parents[3]
PRIVATE = ("unshare", "--map-root-user", "--mount")  # the mounts of such a process are its own, and end with it


def can_mount(folder) -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True)
    return probe.returncode == 0


@pytest.mark.slow
def test_a_full_and_a_read_only_disk(tmp_path):
    """Of checkpoints in one file and of TensorStore's, in one process that may mount."""
    if not can_mount(tmp_path):
        pytest.skip("this system lets no process mount a small disk for itself")
    command = [*PRIVATE, sys.executable, "-W", "error", "-m", "tests.training.checkpoint_disk", str(tmp_path)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\ndone\n"), done.stderr
    assert "ERROR:absl" not in done.stderr, "Orbax logs nothing beside the RunError (TensorStore may print)"


@contextmanager
def files_of_at_most(count):
    """The system refuses to write past `count` bytes of any file, in the midst of the work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [checkpoints_arrays.SMALL, 0], ids=["one file", "TensorStore"])
def test_a_write_that_the_system_refuses(tmp_path, caplog, monkeypatch, limit):
    monkeypatch.setattr(checkpoints_arrays, "SMALL", limit)
    large = {"weights": jnp.asarray(np.random.default_rng(0).normal(size=1_000_000).astype(np.float32))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        with files_of_at_most(1_000_000), caplog.at_level(logging.WARNING):
            checkpoints.save(2, large, {})
            with pytest.raises(RunError, match=r"Generation 2 could not be saved in .*: a file would be larger"):
                checkpoints.wait()
            checkpoints.wait()  # said once
        assert not [one for one in caplog.records if one.name == "absl"], "Orbax's threads beside the error"
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        found = checkpoints.restore(small(0))
        assert_same(found.state, small(1))
        checkpoints.save(3, small(3), {})
        checkpoints.wait()
        assert checkpoints.generations() == [1, 3]


@pytest.mark.parametrize("surfaces", ["save", "close", "restore"])
def test_an_error_of_the_background_surfaces_at_the_next_call(tmp_path, monkeypatch, surfaces):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(module, "write_manifest", full)
    checkpoints.save(1, small(1), {})
    calls = {
        "save": lambda: checkpoints.save(2, small(2), {}),
        "close": checkpoints.close,
        "restore": lambda: checkpoints.restore(small(0)),
    }
    with pytest.raises(RunError, match=r"Generation 1 could not be saved in .*: the disk is full"):
        calls[surfaces]()
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    with checkpoints:
        checkpoints.save(2, small(2), {})
    assert checkpoints.generations() == [2]


@pytest.mark.parametrize("call", [1, 2, -1])
def test_a_disk_that_fills_up_under_the_manifest(tmp_path, monkeypatch, call):
    calls = []
    real = os.fsync

    def fill_up(handle, at=None):
        calls.append(handle)
        if at is not None and len(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(integrity.os, "fsync", fill_up)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        # The last call but two is the manifest's own, its folder's and the parent's come after its name.
        at = call if call > 0 else len(calls) - 3
        calls.clear()
        monkeypatch.setattr(integrity.os, "fsync", lambda handle: fill_up(handle, at))
        checkpoints.save(2, small(2), {})
        with pytest.raises(RunError, match="the disk is full"):
            checkpoints.wait()
        monkeypatch.undo()
        assert checkpoints.generations() == [1] and len(list(tmp_path.iterdir())) == 1
        checkpoints.save(2, small(2), {})
    assert checkpoints.generations() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2-1"]  # where no thread of the failed one writes


def test_an_error_under_way_is_not_hidden_by_the_disks(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_manifest", full)
    with pytest.raises(KeyError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small(1), {})
        raise KeyError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "the folder cannot be written"),
        (ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']"), "the disk is full"),
        (ExceptionGroup("two", [ValueError("x"), OSError(errno.ENOSPC, "y")]), "the disk is full"),
        (RuntimeError("what nobody has seen\nat line 3"), "what nobody has seen. Mend that"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_the_libraries_say_is_translated(tmp_path, monkeypatch, error, message):
    def fail(*_, **__):
        if "seen" in message:
            raise error
        raise ValueError("Failed to run the commit operations") from error

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._arrays, "start", fail)
    with pytest.raises(RunError, match=message):
        checkpoints.save(1, small(1), {})
