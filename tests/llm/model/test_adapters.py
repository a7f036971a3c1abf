"""Adapters of PEFT: added to the base as NumPy adds them, beside it or alone; others are refused by what they ask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from eggroll import llm
from eggroll.llm.answers.decoding import split
from eggroll.llm.model.weights_hf import expected_shapes
from eggroll.training.errors import RunError
from tests.llm import tiny

SETTINGS = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
SETTINGS |= {"bias": "none", "use_dora": False, "modules_to_save": None, "rank_pattern": {}, "layer_replication": None}
QUERY, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "base")


def factors(base: Path, rank: int = 4) -> dict[str, np.ndarray]:
    shapes, rng = dict(expected_shapes(llm.load(base).config)), np.random.default_rng(0)
    found = {}
    for module in (QUERY, DOWN):
        outputs, inputs = shapes[f"{module}.weight"]
        found[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(rank, inputs)).astype(np.float32)
        found[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(outputs, rank)).astype(np.float32)
    return found


def adapter(folder: Path, tensors: dict[str, np.ndarray], **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | changes))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def weight(language: llm.LanguageModel, module: str) -> np.ndarray:
    """`[outputs, inputs]`."""
    name = {"q_proj": "query", "down_proj": "down"}[module.rsplit(".", 1)[1]]
    layers = split(language.model)[1]["layers"]
    return np.asarray(layers[name][...])[int(module.split(".")[2])].T


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({}, {QUERY: 2, DOWN: 2}),
        ({"use_rslora": True}, {QUERY: 4, DOWN: 4}),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2, "proj": 64}}, {QUERY: 0.5, DOWN: 2}),
        ({"alpha_pattern": {"down_proj": 12, "proj": 64}}, {QUERY: 2, DOWN: 3}),
    ],
)
def test_differences_are_added(base, tmp_path, changes, scales):
    tensors = factors(base)
    plain = llm.load(base)
    found = llm.load(adapter(tmp_path / "own", tensors, base_model_name_or_path=str(base), **changes))
    for module, scale in scales.items():
        right, left = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        np.testing.assert_allclose(weight(found, module), weight(plain, module) + scale * left @ right, atol=1e-4)
    other = DOWN.replace("0", "1")
    np.testing.assert_array_equal(weight(found, other), weight(plain, other))


def test_beside_its_base_and_from_its_own_place_and_saved_as_one(base, tmp_path):
    both = adapter(Path(shutil.copytree(base, tmp_path / "both")), factors(base))
    found = llm.load(both)
    beside = adapter(tmp_path / "beside", factors(base), base_model_name_or_path="../both2")
    shutil.copytree(base, tmp_path / "both2")
    assert np.array_equal(weight(llm.load(beside), QUERY), weight(found, QUERY))
    assert not np.array_equal(weight(found, QUERY), weight(llm.load(base), QUERY))
    llm.save(found, tmp_path / "merged")
    assert not (tmp_path / "merged/adapter_config.json").exists()
    assert np.array_equal(weight(llm.load(tmp_path / "merged"), QUERY), weight(found, QUERY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'; 'LORA' is required"),
        ({"use_dora": True}, "use_dora=True, which changes what the model computes"),
        ({"bias": "all"}, "bias=all"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"of_next_year": 3}, "of_next_year=3"),
        ({"lora_alpha": "many"}, "no numbers"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "names of modules are required"),
        ({"base_model_name_or_path": None}, "names no base model"),
    ],
)
def test_what_computes_something_else_is_refused(base, tmp_path, changes, message):
    given = {"base_model_name_or_path": str(base)} | changes
    with pytest.raises(RunError, match=message.replace("(", r"\(")):
        llm.load(adapter(tmp_path / "own", factors(base), **given))


def test_tensors_that_do_not_fit_are_refused(base, tmp_path):
    tensors = factors(base)
    name = f"base_model.model.{QUERY}.lora_A.weight"
    for change, message in (
        ({name: None}, "lora_A .* required"),
        ({name: tensors[name][:, :3]}, r"the base model has it in \[\d+, \d+\]"),
        ({name: tensors[name][:2]}, "required"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": tensors[name]}, "no factor of a matrix"),
        (
            {
                name.replace("q_proj", "qkv"): tensors[name],
                name.replace("q_proj", "qkv").replace("A", "B"): tensors[name].T,
            },
            "no such",
        ),
    ):
        changed = {key: x for key, x in (tensors | change).items() if x is not None}
        changed = {key: np.ascontiguousarray(x) for key, x in changed.items()}
        with pytest.raises(RunError, match=message):
            llm.load(adapter(tmp_path / "own", changed, base_model_name_or_path=str(base)))
    (tmp_path / "own/adapter_config.json").unlink()
    with pytest.raises(RunError, match=r"has adapter_model.safetensors and no adapter_config.json"):
        llm.load(tmp_path / "own")
    shutil.copytree(base, tmp_path / "trained/checkpoint-20")
    with pytest.raises(RunError, match="It has checkpoint-20, which a trainer saved"):
        llm.load(tmp_path / "trained")
