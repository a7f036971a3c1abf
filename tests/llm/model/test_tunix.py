"""Google's Tunix has decoders of its own; the engine takes them as they are, in an environment that has them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("EGGROLL_TUNIX_PYTHON")
HOW = (
    "EGGROLL_TUNIX_PYTHON names no interpreter with google-tunix (it wants safetensors before 0.8, eggroll wants 0.8): "
    "python -m venv ../tunix && ../tunix/bin/pip install google-tunix && ../tunix/bin/pip install --no-deps -e . && "
    "export EGGROLL_TUNIX_PYTHON=../tunix/bin/python"
)
TOLERANCE = 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason=HOW)
def test_tunix_models_run_under_the_engine_as_they_are():
    # Their interpreter is asked for numbers and judged here.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [str(PYTHON), str(ROOT / "tests" / "llm" / "tunix_subject.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["eggroll"]).parents[1] == ROOT, "eggroll of another checkout: pip install --no-deps -e . there"
    assert set(found["models"]) == {"llama3", "qwen2", "qwen3", "qwen3-experts"}
    for name, model in found["models"].items():
        assert len(model["logits"]) == 4 and max(model["logits"]) <= TOLERANCE, (name, model)
        assert model["between"] > 1000 * TOLERANCE, (name, model)  # another member's logits would not have passed
        assert model["cache"] <= TOLERANCE, (name, model)
        assert 15 <= model["matrices"] == model["low_rank"], (name, model)
        assert model["fitness"] <= TOLERANCE < model["spread"] / 100, (name, model)
        assert model["moved"] == model["parameters"] > model["matrices"], (name, model)
