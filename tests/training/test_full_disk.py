"""A disk that fills up under a run: a clear error, and the run goes on from its checkpoint when there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.checkpoints.test_checkpoints_faults import PRIVATE, ROOT, can_mount


@pytest.mark.slow
def test_a_run_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("this system lets no process mount a small disk for itself")
    command = [*PRIVATE, sys.executable, "-W", "error", "-m", "tests.training.full_disk_job", str(disk), str(elsewhere)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    # TensorStore may say on stderr that its event loop is closed.
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
