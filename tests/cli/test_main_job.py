"""The main job as its user starts it, with default settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eggroll.training import read_metrics
from tests.cli.running import spawn


@pytest.mark.slow
def test_the_default_run_reaches_95_percent(tmp_path: Path) -> None:
    done = spawn("train", "--out", tmp_path / "run", env=dict(os.environ), timeout=3600)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run")[-1]["test_accuracy"] >= 0.95
