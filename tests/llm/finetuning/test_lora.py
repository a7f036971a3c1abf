"""Adapters that are evolved: the base stays, PEFT's folder has them, and computes what NumPy makes of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from eggroll import llm
from eggroll.llm.answers.decoding import Decoding, generator, split
from eggroll.llm.finetuning.settings import settings_for
from eggroll.llm.finetuning.strategy import strategy
from eggroll.llm.model.loading import decoder_of
from eggroll.llm.model.lora import Adapting
from eggroll.llm.model.weights_hf import assemble
from eggroll.training import read_metrics
from eggroll.training.errors import RunError
from tests.cli.running import call
from tests.llm import tiny
from tests.llm.climbing import SIZES
from tests.llm.hub import taking_hub

ADAPTER, TOKENS = "adapter_model.safetensors", np.arange(12).reshape(2, 6)
ASKED = ("--task", "conciseness", "--max-tokens", "4", "--workers", "1", "--degenerate", "scored", "--temperature", "1")
RUN = (*ASKED, "--eval-prompts", "2", "--population", "8", "--prompts", "2", "--deliver", "last", "--lora", "2")
RUN += ("--kl", "0.1", "--log-completions", "jsonl")


def base(path: Path, family: str = "smollm2", **changes: Any) -> Path:
    return tiny.folder(path / "base", family, vocab_size=tiny.VOCABULARY, **changes)


def moved(language: llm.LanguageModel) -> llm.LanguageModel:
    """The same with factors `B` that are not zero."""
    for name, own in sorted(split(language.model)[1]["layers"].items()):
        if name.endswith("_lora_b"):
            drawn = np.random.default_rng(len(name)).normal(0, 0.3, own[...].shape)
            getattr(language.model.layers, name)[...] = jnp.asarray(drawn, own[...].dtype)
    return language


def logits(model: llm.Decoder) -> np.ndarray:
    return np.asarray(model(jnp.asarray(TOKENS)))


@pytest.mark.parametrize(
    "family", ["smollm2", *(pytest.param(x, marks=pytest.mark.slow) for x in ("phi3", "gpt_neox"))]
)
def test_a_folder_has_the_logits_of_weights_that_numpy_merges(family: str, tmp_path: Path) -> None:
    """Phi-3 and GPT-NeoX have several matrices in one tensor, the latter head by head."""
    folder = base(tmp_path, family)
    plain, begun = llm.load(folder), llm.load(folder, lora=Adapting(3, alpha=12, seed=1))
    np.testing.assert_allclose(logits(begun.model), logits(plain.model), atol=1e-5)  # B is zero
    llm.save(moved(begun), tmp_path / "adapter")
    tensors, weights = load_file(tmp_path / "adapter" / ADAPTER), load_file(folder / "model.safetensors")
    for name in (name for name in tensors if "lora_A" in name):
        weight = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
        weights[weight] = weights[weight] + 4 * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    truth = logits(decoder_of(plain.config, assemble(plain.config, lambda name: weights[name], "float32")))
    assert np.abs(truth - logits(plain.model)).max() > 0.1
    np.testing.assert_allclose(logits(begun.model), truth, atol=1e-4)
    np.testing.assert_allclose(logits(llm.load(tmp_path / "adapter").model), truth, atol=1e-4)


def test_adapters_begin_as_pefts_do_and_are_taken_up_or_merged(tmp_path: Path) -> None:
    folder = base(tmp_path)
    begun = llm.load(folder, lora=Adapting(2, targets=("q_proj", "mlp.down_proj"), seed=3))
    layers = {name: np.asarray(x[...]) for name, x in split(begun.model)[1]["layers"].items() if "_lora_" in name}
    assert sorted(layers) == ["down_lora_a", "down_lora_b", "query_lora_a", "query_lora_b"]
    bound = begun.config.width**-0.5
    assert 0.8 * bound < np.abs(layers["query_lora_a"]).max() <= bound and not layers["query_lora_b"].any()
    llm.save(moved(begun), tmp_path / "adapter")
    found = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (found["r"], found["lora_alpha"], found["target_modules"]) == (2, 4, ["mlp.down_proj", "self_attn.q_proj"])
    assert found["base_model_name_or_path"] == str(folder)
    again = llm.load(tmp_path / "adapter", lora=Adapting(2))
    assert again.config == begun.config and again.base == begun.base
    jax.tree.map(np.testing.assert_array_equal, *(split(x.model)[1] for x in (again, begun)))
    llm.save(llm.load(tmp_path / "adapter"), tmp_path / "adapter")  # merged, in its place
    assert not (tmp_path / "adapter/adapter_config.json").exists()
    for wanted, where, message in (
        (Adapting(2, targets=("w",)), folder, "got the target module 'w'; the model has self_attn.q_proj, "),
        (Adapting(2), base(tmp_path / "2", "gpt2"), r"got adapters for a model of the family 'gpt2'"),
    ):
        with pytest.raises(RunError, match=message):
            llm.load(where, lora=wanted)
    with pytest.raises(RunError, match="for adapters, which has a model"):
        llm.save(begun, folder)


@pytest.mark.parametrize("method", ["eggroll", "full-rank"])
def test_only_adapters_have_noise_of_low_rank(method: str, tmp_path: Path) -> None:
    settings = settings_for(method, model=".", task="conciseness", population=8, prompts=2, lora=2, sigma=0.1)
    language = llm.load(base(tmp_path), lora=Adapting(2))
    graphdef, params = split(language.model)
    es = strategy(settings)
    members = es.ask(es.init(params, jax.random.key(0)))
    rows = np.zeros((2, 1, 3), np.int32), np.zeros((2, 1), np.int32)
    plan = members.plan_for(generator(graphdef, Decoding(2)), *rows, in_axes=(0, 0)) if method == "eggroll" else None
    plan = es.plan_for(params) if plan is None else plan
    kinds = {leaf.path: leaf.kind for leaf in plan.leaves}
    expected = "low_rank" if method == "eggroll" else "dense"
    assert kinds == {path: expected if "_lora_" in path else "frozen" for path in kinds}
    assert sum("_lora_" in path for path in kinds) == 14


@pytest.mark.slow
def test_a_run_of_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped and gone on, replayed, evaluated, pushed and the start of another run, with sigma and rate chosen."""
    base(tmp_path, **SIZES, num_key_value_heads=1)
    monkeypatch.chdir(tmp_path)
    command = ("finetune", "--model", "base", *RUN)
    with taking_hub("owner/tiny", "secret") as (address, given):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "secret")
        to = ("--push-to-hub", "--hub-model-id", "owner/tiny")
        assert call(*command, "--out", "whole", "--generations", "2", *to) == 0
    assert call(*command, "--out", "parts", "--generations", "1") == 0
    assert call("finetune", "--resume", "--out", "parts", "--generations", "2") == 0
    whole = replayed(Path("whole"), "base")
    assert given[ADAPTER] == whole and "tokenizer.json" in given and "MANIFEST.json" not in given
    told = [[x.read_bytes() for x in sorted((tmp_path / run / "completions").iterdir())] for run in ("whole", "parts")]
    rewards = [np.mean([json.loads(line)["reward"] for line in file.splitlines()]) for file in told[0]]
    records = read_metrics(tmp_path / "whole")
    assert told[0] == told[1] and rewards == pytest.approx([r["reward_mean"] for r in records], abs=1e-6)
    assert all(r["kl"] > 0 and r["reward_unperturbed"] < 0 for r in records)
    assert Path("parts/model", ADAPTER).read_bytes() == whole
    assert call("evaluate", "--model", "whole", *ASKED, "--prompts", "2") == 0
    on = ("finetune", "--model", "whole", "--method", "full-rank", "--generations", "1", *RUN, "--out")
    assert call(*on, "more") == 0
    assert replayed(Path("more"), "whole/model") != whole
    assert call(*on[:-1], "--lora", "3", "--out", "other") == 2


def replayed(run: Path, begun: str) -> bytes:
    """The run's adapters, all of which have moved: those that a replay from `begun` makes, without the base."""
    assert call("replay", begun, run, "--out", f"{run}-again") == 0
    file = run / "model" / ADAPTER
    assert all(x.any() for x in load_file(file).values()) and not (run / "model/config.json").exists()
    assert Path(f"{run}-again", ADAPTER).read_bytes() == file.read_bytes()
    return file.read_bytes()
