"""Folders: what is loaded is what was saved, bit for bit, and what does not fit is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from eggroll import llm
from eggroll.llm.answers.prompts import encode
from eggroll.llm.finetuning.model_folders import write_model
from eggroll.llm.model.files import hub_place, push
from eggroll.training.errors import RunError
from tests.llm import tiny
from tests.llm.hub import hub, taking_hub


def same_bits(a, b) -> bool:
    a, b = (nnx.to_pure_dict(nnx.split(x.model, nnx.Param)[1]) for x in (a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("gemma3", "bfloat16"), ("qwen2", "bfloat16")])
def test_a_round_trip_keeps_every_bit_and_all_that_belongs_to_the_model(tmp_path, family, dtype):
    made = tiny.language_model(family, dtype=dtype)
    llm.save(made, tmp_path / "a")
    first = llm.load(tmp_path / "a")
    llm.save(first, tmp_path / "b")
    second = llm.load(tmp_path / "b")
    assert same_bits(made, first) and same_bits(first, second)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert "local" not in (tmp_path / "b/tokenizer_config.json").read_text()  # nothing of how it was loaded
    assert first.config == second.config == made.config
    assert json.loads((tmp_path / "a/config.json").read_text()).get("dtype") == dtype
    text = "Grüße, 你好!\n  <|im_end|>"
    for language in (first, second):
        assert language.tokenizer.decode(language.tokenizer.encode(text)) == text
        assert language.tokenizer.chat_template == tiny.TEMPLATE
        assert (
            language.stop == (1, 3) and language.pad == 0
        )  # <|endoftext|> of config.json, <|im_end|> of the tokenizer


def test_other_weights_can_be_saved_and_others_of_another_shape_not(tmp_path):
    language = tiny.language_model()
    params = nnx.split(language.model, nnx.Param)[1]
    llm.save(language, tmp_path, params=jax.tree.map(lambda leaf: leaf * 2.0, params))
    assert np.array_equal(llm.load(tmp_path).model.embed[...], language.model.embed[...] * 2)
    with pytest.raises(RunError, match="shapes"):
        llm.save(language, tmp_path, params=nnx.split(tiny.language_model("qwen3").model, nnx.Param)[1])


def test_a_folder_without_a_name_is_not_the_current_one():
    with pytest.raises(RunError, match="got folder='', which cannot be a file's name"):
        llm.save(tiny.language_model("qwen3"), "")


def test_dtype_casts_and_the_files_own_is_kept(tmp_path):
    tiny.folder(tmp_path, dtype=jnp.bfloat16)
    assert llm.load(tmp_path).model.layers.query.dtype == jnp.bfloat16
    assert llm.load(tmp_path, dtype="float32").model.layers.query.dtype == jnp.float32
    with pytest.raises(RunError, match="int8"):
        llm.load(tmp_path, dtype="int8")


def test_a_file_of_several_dtypes_loads_without_loss(tmp_path):
    tiny.folder(tmp_path, dtype=jnp.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = np.full(16, 1 + 2**-20, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    model = llm.load(tmp_path).model
    assert model.norm.dtype == model.embed.dtype == jnp.float32
    assert np.array_equal(model.norm[...], tensors["model.norm.weight"])


def test_shards_are_read_through_their_index(tmp_path):
    whole = llm.load(tiny.folder(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / shard)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same_bits(whole, llm.load(tmp_path))
    llm.save(whole, tmp_path)  # replaces shards and index
    assert sorted(file.name for file in tmp_path.glob("model*")) == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match=r"model-00001-of-00002\.safetensors cannot be read"):
        llm.load(tmp_path)


def test_a_copy_of_the_tied_embedding_is_passed_over_and_another_matrix_refused(tmp_path):
    tiny.folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
    llm.load(tmp_path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="tie_word_embeddings"):
        llm.load(tmp_path)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


BROKEN = {
    "missing": (without("model.layers.1.mlp.up_proj.weight"), r"lacks model\.layers\.1\.mlp\.up_proj\.weight;"),
    "unexpected": (
        lambda t: t | {"model.layers.2.mlp.up_proj.weight": t["model.norm.weight"]},
        r"unexpected model\.layers\.2\.mlp\.up_proj\.weight",
    ),
    "shape": (
        lambda t: t | {"model.layers.0.self_attn.k_proj.weight": np.zeros((16, 8), np.float32)},
        r"k_proj\.weight has the shape \[16, 8\]; the configuration requires \[8, 16\]",
    ),
    "quantised": (lambda t: t | {"model.norm.weight": np.ones(16, np.int8)}, r"model\.norm\.weight is I8"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_weights_that_do_not_fit_are_named(tmp_path, how):
    change, message = BROKEN[how]
    tiny.folder(tmp_path)
    save_file(change(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(RunError, match=message):
        llm.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path, content):
    tiny.folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(RunError, match=r"index\.json is no index of weights"):
        llm.load(tmp_path)


def test_configurations_that_are_none(tmp_path):
    tiny.folder(tmp_path)
    tiny.edit(tmp_path / "config.json", num_key_value_heads=0)
    with pytest.raises(RunError, match=r"0 heads of keys and values|does not accept the configuration"):
        llm.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(RunError, match="no JSON object"):
        llm.load(tmp_path)


def test_what_a_folder_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match="no such folder"):
        llm.load(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"config\.json"):
        llm.load(tmp_path)
    tiny.folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(RunError, match=r"no model\.safetensors.*pytorch_model\.bin"):
        llm.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(RunError, match="no tokenizer"):
        llm.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        llm.load(tmp_path)
    with pytest.raises(RunError, match=r"a folder, a \.gguf file or a hub id"):
        llm.load(tmp_path / "config.json")


def test_a_model_that_does_not_fit_the_disk_leaves_the_one_before(tmp_path, monkeypatch):
    model = tiny.language_model("llama")
    write_model(model, tmp_path / "model", None)
    before = (tmp_path / "model/model.safetensors").read_bytes()

    def full(tensors, file, **_):
        Path(file).write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(RunError, match=r"cannot write to .*No space left on device .*make room"):
        write_model(model, tmp_path / "model", None)
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_an_error_of_the_hub_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("There is no network.\nSee a page:\nhttps://example.org")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(RunError) as said:
        llm.load("owner/name")
    assert str(said.value).endswith("the hub does not give it (There is no network). Give a folder, or check the id.")


def test_special_tokens_beyond_the_embedding_are_no_obstacle(tmp_path):
    """As Gemma 3 has one for images."""
    tiny.folder(tmp_path)
    tokenizer = llm.load(tmp_path).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(tmp_path)
    again = llm.load(tmp_path)
    assert again.tokenizer.get_vocab()["<image>"] == tiny.VOCABULARY
    with pytest.raises(RunError, match=rf"the token {tiny.VOCABULARY}; the model has embeddings"):
        encode(again.tokenizer, ["see <image>"], vocabulary=again.config.vocabulary)


def test_broken_tokenizers_and_those_of_other_models_are_refused(tmp_path):
    tiny.folder(tmp_path, vocab_size=tiny.VOCABULARY - 1)
    with pytest.raises(RunError, match="highest token is 259; the embedding has rows for 0 to 258"):
        llm.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match=r"the tokenizer in .* cannot be loaded"):
        llm.load(tmp_path)


LOADS = """
from eggroll import llm
for name, folder in (("owner/tiny", "a"), ("owner/tiny", "b")):
    llm.save(llm.load(name), folder)
"""


@pytest.mark.slow
def test_a_hub_id_is_fetched_once(tmp_path):
    model = tiny.folder(tmp_path / "model")
    (model / "pytorch_model.bin").write_bytes(b"what nobody needs")
    with hub("owner/tiny", model) as (address, asked):
        env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
        env.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", LOADS]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "pytorch_model.bin" not in asked and sorted(asked) == sorted(set(asked))
    for folder in ("a", "b"):
        assert same_bits(llm.load(tmp_path / folder), llm.load(model))


def test_a_folder_is_put_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "MANIFEST.json").write_text("of the run")
    model = {"adapter_model.safetensors": b"\0\1", "adapter_config.json": b"{}"}
    for name, content in model.items():
        (tmp_path / name).write_bytes(content)
    with taking_hub("owner/tiny", "secret", private=True) as (address, given):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "wrong")
        with pytest.raises(RunError, match="got the hub's model 'owner/tiny', and the hub does not take it"):
            hub_place("owner/tiny")
        monkeypatch.setenv("HF_TOKEN", "secret")
        hub_place("owner/tiny", private=True)
        assert push(tmp_path, "owner/tiny", "a model").startswith(f"{address}/owner/tiny/commit/")
    assert given == model
