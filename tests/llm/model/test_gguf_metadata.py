"""Metadata of GGUF files: what is neither read nor known to change nothing is refused by name."""

from __future__ import annotations

import re

import pytest
from gguf import GGUFWriter

from eggroll import llm
from eggroll.training.errors import RunError
from tests.llm import tiny
from tests.llm.model.test_gguf import write


@pytest.mark.parametrize(
    ("kind", "family", "name", "value"),
    [
        ("llama", "llama", "llama.attention.sliding_window", 8),
        ("llama", "llama", "llama.rope.dimension_count", 2),
        ("qwen2", "qwen2", "qwen2.expert_count", 4),
        ("gemma3", "gemma3", "gemma3.attention.sliding_window_pattern", 2),
        ("qwen3", "qwen3", "qwen3.something_new", 1),
    ],
)
def test_metadata_that_is_not_read_is_refused_by_name(tmp_path, monkeypatch, kind, family, name, value):
    add = GGUFWriter.add_context_length
    monkeypatch.setattr(GGUFWriter, "add_context_length", lambda w, n: (add(w, n), w.add_uint32(name, value)))
    file, _ = write(tmp_path, kind, family)
    with pytest.raises(RunError, match=re.escape(f"has {name}={value}, which the decoder does not compute")):
        llm.load(file)


def test_metadata_that_says_what_is_computed_is_accepted(tmp_path, monkeypatch):
    add = GGUFWriter.add_context_length

    def more(writer, length):
        add(writer, length)
        writer.add_vocab_size(tiny.VOCABULARY)
        writer.add_rope_dimension_count(8)
        writer.add_value_length(8)
        writer.add_causal_attention(True)
        writer.add_array("gemma3.attention.sliding_window_pattern", [True, True, True])
        writer.add_float32("gemma3.rope.freq_base_swa", 10000.0)

    monkeypatch.setattr(GGUFWriter, "add_context_length", more)
    file, folder = write(tmp_path, "gemma3", "gemma3")
    assert llm.load(file).config == llm.load(folder).config
