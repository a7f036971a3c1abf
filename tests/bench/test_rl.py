"""The bench of policies, on an environment that needs no other package."""

from __future__ import annotations

import json

import pytest

from bench import rl

ARMS = ["rank 4", "full rank", "PPO"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:got equal fitness")  # every member solves that one before the steps are over
def test_arms_are_measured_at_equal_steps(tmp_path):
    options = ["--envs", "python:tests.rl.worlds:Line", "--steps", "4000", "--seeds", "2", "--points", "2"]
    rl.main([*options, "--arms", *ARMS, "--episodes", "4", "--out", str(tmp_path)])
    (out,) = tmp_path.glob("*.json")
    assert len(list(tmp_path.glob("*.png"))) == 1
    found = json.loads(out.read_text())
    assert [row["arm"] for row in found["rows"]] == ARMS
    assert found["rows"][-1]["best"] > 6  # of 8: PPO learns, too
    assert all(curve["steps"] == [2000, 4000] for curve in found["series"])
    assert all(len(curve["return"]) == 2 for curve in found["series"])
