"""The main job as its user starts it, with default settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from eggroll.training import read_metrics
from tests.cli.running import call


@pytest.mark.slow
@pytest.mark.optimised
def test_the_default_run_reaches_95_percent(tmp_path: Path) -> None:
    assert call("train", "--out", tmp_path / "run") == 0
    assert read_metrics(tmp_path / "run")[-1]["test_accuracy"] >= 0.95
