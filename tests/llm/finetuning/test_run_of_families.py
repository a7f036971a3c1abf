"""Whole runs with a mixture of experts and with Gemma 2: what comes out is a model of the same architecture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from eggroll import llm
from eggroll.training.errors import RunError
from tests.llm import tiny

SMALL = {"task": "conciseness", "population": 4, "prompts": 2, "generations": 2, "max_tokens": 5, "eval_prompts": 2}
SMALL |= {"degenerate": "scored", "sigma": 0.3, "deliver": "last"}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), [("qwen3_moe", "eggroll"), ("gemma2", "full-rank")])
def test_a_run_writes_a_model_of_its_architecture(family, method, tmp_path):
    tiny.folder(tmp_path / "base", family, vocab_size=tiny.VOCABULARY)
    groups = {"groups": 2} if method == "eggroll" else {}
    options = {"model": str(tmp_path / "base"), "out": str(tmp_path / "run"), **SMALL, **groups}
    llm.finetune(llm.settings_for(method, **options))
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("base", "run/model"))
    assert before.keys() == after.keys()
    changed = {name for name, weight in after.items() if not np.array_equal(weight, before[name])}
    assert {name for name in before if "proj" in name} <= changed  # of every expert, too
    files = (tmp_path / place / "config.json" for place in ("base", "run/model"))
    kinds = {json.loads(file.read_text())["model_type"] for file in files}
    assert kinds == {family} and llm.load(tmp_path / "run" / "model").config == llm.load(tmp_path / "base").config


def test_noise_on_activations_is_refused_for_experts(tmp_path):
    tiny.folder(tmp_path / "base", "qwen3_moe", vocab_size=tiny.VOCABULARY)
    options = {"model": str(tmp_path / "base"), "out": str(tmp_path / "run"), "groups": 2, **SMALL}
    with pytest.raises(RunError, match="got noise on activations for a mixture of experts"):
        llm.finetune(llm.settings_for("eggroll", noise="activations", **options))
