"""A run's model that was altered since is named, wherever it was copied to."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from eggroll import llm
from eggroll.llm.finetuning.model_folders import source_of, write_model
from eggroll.llm.model.files import transformers
from eggroll.training import RunError
from tests.llm import tiny


def weights(language: llm.LanguageModel) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.split(language.model, nnx.Param)[1])]


def test_bits_that_flip_are_named_and_another_place_changes_nothing(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "base")
    language = llm.load(tmp_path / "base")
    (tmp_path / "model.partial").symlink_to(tmp_path / "base")  # never written through
    (tmp_path / "model").symlink_to(tmp_path / "base")
    before = {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()}
    write_model(language, tmp_path / "model", nnx.split(language.model, nnx.Param)[1])
    assert {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()} == before
    moved = Path(shutil.copytree(tmp_path / "model", tmp_path / "elsewhere"))
    (moved / "README.md").write_text("mine")
    for got, want in zip(weights(llm.load(moved)), weights(language), strict=True):
        np.testing.assert_array_equal(got, want)
    assert transformers().AutoConfig.from_pretrained(moved).model_type == "llama"
    for file in sorted(moved.iterdir()):
        if file.name == "README.md":
            continue
        whole = file.read_bytes()
        for at in (len(whole) // 3, len(whole) - 2):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(RunError, match=rf"elsewhere' is not as eggroll wrote it: {file.name} .*delete '"):
                llm.load(moved)
        file.write_bytes(whole)
    (moved / "MANIFEST.json").unlink()
    tiny.edit(moved / "config.json", eos_token_id=3)
    assert 3 in llm.load(moved).stop
    llm.save(language, moved)  # and what replaces a run's model has none
    assert not (moved / "MANIFEST.json").exists()
    assert source_of(tmp_path / "elsewhere") == tmp_path / "elsewhere"
