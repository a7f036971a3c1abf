"""Every architecture and variant that is read: logits and greedy answers of PyTorch, and checkpoints both ways."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import eggroll
from eggroll import llm
from eggroll.llm.model.config import config_from, text_part
from eggroll.llm.model.decoder import empty_cache
from eggroll.llm.model.loading import decoder_of
from eggroll.llm.model.weights_hf import assemble, check_shapes, read_folder, write_file
from eggroll.training.errors import RunError
from tests.llm.decoders import ANSWER, CASES, STARTS, TIME, draw, prompts
from tests.llm.model.test_parity import logits_and_greedy
from tests.llm.tiny import tokenizer
from tests.quick import quickest

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "decoders.npz")
# Default: experts with biases, sinks and windows; and positions that change their kind in the middle of an answer.
QUICK = ("gpt_oss", "phi4-mini")


def checkpoint(case):
    """The tensors that transformers writes for a case."""
    shapes = json.loads(str(GOLDEN[f"{case}/tensors"]))
    return {name: draw(CASES[case]["model_type"], name, tuple(shape)) for name, shape in shapes.items()}


def of_text(tensors):
    """Without a part for pictures, under the names that transformers gives to a model of text alone."""
    starts = ("language_model.", "model.language_model.")
    if not any(name.startswith(starts) for name in tensors):
        return tensors
    named = {name.replace("language_model.model.", "model."): one for name, one in tensors.items()}
    named = {name.replace("model.language_model.", "model."): one for name, one in named.items()}
    return {name: one for name, one in named.items() if name.startswith(("model.embed", "model.layers", "model.norm"))}


def made(case):
    config, tensors = config_from(CASES[case]), of_text(checkpoint(case))
    check_shapes(case, config, {name: tensor.shape for name, tensor in tensors.items()})
    return decoder_of(config, assemble(config, tensors.get, "float32"))


@pytest.mark.parametrize("case", quickest(CASES, *QUICK))
def test_logits_and_greedy_answers_are_those_of_transformers(case):
    """Padded on the left, beyond windows, and beyond the length that rotary positions were made for."""
    wanted = GOLDEN[f"{case}/logits"]
    logits, written = logits_and_greedy(made(case), *prompts(), ANSWER)
    assert wanted.std() > 0.3  # 1e-4 says something
    for row, first in enumerate(STARTS):
        np.testing.assert_allclose(logits[row, first:], wanted[row, first:], atol=1e-4, rtol=0)
    answers = GOLDEN[f"{case}/answer"]
    assert len(set(answers.ravel().tolist())) > 3
    assert np.array_equal(written, answers)


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_what_was_read(case, tmp_path):
    """Names, shapes, dtypes and bits, where one tensor holds several weights or the transpose of one, too."""
    file, model = tmp_path / "model.safetensors", made(case)
    write_file(file, model.config, nnx.to_pure_dict(nnx.split(model, nnx.Param)[1]))
    ours, theirs = load_file(file), of_text(checkpoint(case))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype and np.array_equal(ours[name], weight), name


FACTORED = [(case, True) for case in ("gpt_oss", "qwen2_moe", "gemma2", "phi4-mini", "gpt_neox")]


@pytest.mark.parametrize(("case", "cached"), quickest([*FACTORED, ("mixtral", False)], ("mixtral", False)))
def test_members_keep_every_matrix_factored_also_of_each_expert(case, cached):
    """With a cache and without; against each member's dense weights."""
    graph, params = nnx.split(made(case), nnx.Param)
    tokens, start = map(jnp.asarray, prompts())
    es = eggroll.ES(population=4, sigma=0.1, fallback="error", chunk=4)
    members = es.ask(es.init(params, jax.random.key(2)))

    def both(params):
        model = nnx.merge(graph, params)
        if not cached:
            return (model(tokens, start)[:, -1],)
        first, cache = model.extend(tokens[:, :-1], empty_cache(model.config, len(tokens), TIME + 8), 0, start)
        return first, model.extend(tokens[:, -1:], cache, jnp.int32(TIME - 1), start)[0]

    found, dense = members.apply(both), jax.jit(both)
    for each, wanted, base in zip(found, dense(members.materialize(3)), dense(params), strict=True):
        np.testing.assert_allclose(each[3], wanted, atol=3e-4, rtol=3e-4)
        assert np.abs(wanted - base).max() > 0.1  # the perturbation matters
    kinds = {row.path.removeprefix("layers/"): row.kind for row in members.plan.leaves}
    assert {kinds[name] for name in ("embed", "query", "key", "value", "out", "up", "down")} == {"low_rank"}
    assert kinds.get("router", "low_rank") == kinds.get("shared_gate", "low_rank") == "low_rank"


def test_of_a_model_that_sees_the_part_for_text_is_read_and_saved_alone(tmp_path):
    """From a folder in the layout of transformers 4 or 5, to one of `Gemma3ForCausalLM`."""
    case, tensors = "gemma3-wrapper", checkpoint("gemma3-wrapper")
    settings = CASES[case] | {"text_config": CASES[case]["text_config"] | {"vocab_size": 300}}
    tensors = {name: np.resize(x, (300, 32)) if "embed_tokens" in name else x for name, x in tensors.items()}
    for place in ("old", "new"):
        folder = tmp_path / place
        tokenizer().save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(settings))
        swapped = {name.replace("language_model.model.", "model.language_model."): x for name, x in tensors.items()}
        save_file(tensors if place == "old" else swapped, folder / "model.safetensors")
        language = llm.load(folder)
        llm.save(language, tmp_path / f"{place}-saved")
        saved = json.loads((tmp_path / f"{place}-saved" / "config.json").read_text())
        assert saved["architectures"] == ["Gemma3ForCausalLM"] and saved["model_type"] == "gemma3_text"
        assert config_from(saved) == language.config == config_from(text_part(settings))
        ours, theirs = load_file(tmp_path / f"{place}-saved" / "model.safetensors"), of_text(tensors)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    (folder / "config.json").write_text(json.dumps({**settings, "sees": True}))
    with pytest.raises(RunError, match="got sees=True in the configuration of this gemma3_text model"):
        llm.load(folder)


def test_gpt2_as_it_was_published_is_read(tmp_path):
    """Without the output matrix, and so without the name of what is beside it; with tables of masks."""
    config, tensors = config_from(CASES["gpt2"]), checkpoint("gpt2")
    bare = {name.removeprefix("transformer."): one for name, one in tensors.items()}
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 4, 4), np.float32) for i in range(2)}
    save_file(bare | masks, tmp_path / "model.safetensors")
    weights = read_folder(tmp_path, config)
    np.testing.assert_array_equal(weights["layers"]["up"][1], tensors["transformer.h.1.mlp.c_fc.weight"])
    np.testing.assert_array_equal(weights["positions"], tensors["transformer.wpe.weight"])


def test_a_tensor_that_a_family_has_not_is_named(tmp_path):
    config, tensors = config_from(CASES["qwen3_moe"]), checkpoint("qwen3_moe")
    lost = "model.layers.1.mlp.experts.3.up_proj.weight"
    save_file({name: one for name, one in tensors.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match=f"lacks {lost}; do config.json and the weights belong together"):
        read_folder(tmp_path, config)
