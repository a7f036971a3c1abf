"""Metadata of GGUF files: read as llama.cpp reads it, and refused by name where it is not known to change nothing."""

from __future__ import annotations

import re

import pytest

from eggroll import llm
from eggroll.llm.answers.prompts import encode
from eggroll.llm.model.config import Rope
from eggroll.llm.model.gguf_tokens import ends_of, tokenizer_from
from eggroll.training.errors import RunError
from tests.llm import tiny
from tests.llm.model.test_gguf import fields, write


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
def test_metadata_that_is_not_read_is_refused_by_name(tmp_path, kind, family, name, value):
    file, _ = write(tmp_path, kind, family, say=[("add_uint32", name, value)])
    with pytest.raises(RunError, match=re.escape(f"has {name}={value}, which the decoder does not compute")):
        llm.load(file)


def test_metadata_that_says_what_is_computed_is_accepted(tmp_path):
    say = [
        ("add_uint32", "gemma3.vocab_size", tiny.VOCABULARY),
        ("add_uint32", "gemma3.rope.dimension_count", 8),
        ("add_uint32", "gemma3.attention.value_length", 8),
        ("add_bool", "gemma3.attention.causal", True),
        ("add_array", "gemma3.attention.sliding_window_pattern", [True, True, True]),
        ("add_float32", "gemma3.rope.freq_base_swa", 10000.0),
    ]
    file, folder = write(tmp_path, "gemma3", "gemma3", say=say)
    assert llm.load(file).config == llm.load(folder).config


FACTOR, OLDER = ("add_float32", "llama.rope.scaling.factor", 4.0), ("add_float32", "llama.rope.scale_linear", 2.0)
LINEAR, NONE = (("add_string", "llama.rope.scaling.type", name) for name in ("linear", "none"))


@pytest.mark.parametrize(
    ("say", "rope"),
    [
        ([FACTOR], Rope(100000.0, "linear", 4.0)),
        ([OLDER], Rope(100000.0, "linear", 2.0)),
        ([FACTOR, OLDER, LINEAR], Rope(100000.0, "linear", 4.0)),
        ([FACTOR, NONE], Rope(100000.0)),
        ([LINEAR], Rope(100000.0)),
        ([("add_float32", "llama.rope.scaling.factor", 0.0)], Rope(100000.0)),
    ],
)
def test_positions_are_scaled_as_llama_cpp_scales_them(tmp_path, say, rope):
    assert llm.load(write(tmp_path, "llama", "smollm2", say=say)[0]).config.rope == rope


REFUSED = [
    ([("add_string", "llama.rope.scaling.type", "yarn")], "type 'yarn'"),
    ([("add_float32", "llama.rope.scaling.factor", float("nan"))], "factor.*nan; a finite number above 0"),
    ([("add_float32", "llama.rope.scaling.factor", -2.0)], r"factor.*-2\.0; a finite number above 0"),
    ([("add_float32", "llama.attention.layer_norm_rms_epsilon", float("nan"))], "got epsilon=nan"),
    ([("add_uint32", "llama.block_count", 10**9)], "llama.block_count=1000000000; a whole number from 1 to 20"),
    ([("add_string", "llama.embedding_length", "wide")], "llama.embedding_length='wide'; a whole number"),
    ([("add_uint32", "llama.attention.head_count", 0)], "head_count=0; a whole number"),
    ([("add_array", "llama.attention.head_count", [4, 4])], r"head_count=\[4, 4\]; a whole number"),
    ([("add_uint32", "general.architecture", 5)], "architecture 5; known are"),
    (
        [("add_uint32", "tokenizer.ggml.eos_token_id", 260)],
        "eos_token_id=260, and its tokens have the numbers 0 to 259",
    ),
    ([("add_int32", "tokenizer.ggml.eot_token_id", -1)], "eot_token_id=-1"),
    ([("add_string", "tokenizer.ggml.add_bos_token", "yes")], "add_bos_token='yes'"),
    ([("add_array", "tokenizer.ggml.suppress_tokens", [5])], r"suppress_tokens=\[5\], which is not known"),
    ([("add_bool", "tokenizer.ggml.add_sep_token", True)], "add_sep_token=True"),
    ([("add_array", "tokenizer.ggml.token_type", [1, 1])], "2 entries for tokenizer.ggml.token_type"),
    ([("add_array", "tokenizer.ggml.tokens", ["a", "b", "a"])], "the token 'a' 2 times"),
    ([("add_array", "tokenizer.ggml.merges", ["ab"])], "the merge 'ab', which is no pair"),
    ([("add_array", "tokenizer.ggml.merges", ["a zz"])], "cannot be built"),
    ([("add_uint32", "tokenizer.chat_template", 5)], "chat_template=5; a text"),
    ([("add_uint16", "split.count", 3)], "one of the 3 parts of a split GGUF file.*llama-gguf-split --merge"),
]


@pytest.mark.parametrize(("say", "message"), REFUSED)
def test_metadata_that_none_can_have_is_refused_by_name(tmp_path, say, message):
    file = write(tmp_path, "llama", "smollm2", say=say)[0]
    with pytest.raises(RunError, match=rf"^{file}.*{message}"):
        llm.load(file)


def test_a_part_is_known_by_its_name_too(tmp_path):
    file = write(tmp_path, "llama", "smollm2")[0].rename(tmp_path / "m-00002-of-00003.gguf")
    with pytest.raises(RunError, match="one of the 3 parts"):
        llm.load(file)


PIECES = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "a"], "token_type": [2, 3, 3, 1], "scores": [0.0] * 4}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["a"]),
        ({"add_bos_token": True}, ["<s>", "a"]),
        ({"add_eos_token": True}, ["a", "</s>"]),
        ({"pre": "llama-bpe"}, ["<s>", "a"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["a"]),
        (PIECES | {"bos_token_id": None, "eos_token_id": None, "add_space_prefix": False}, ["<s>", "a"]),
        (PIECES | {"add_bos_token": False, "add_space_prefix": False, "bos_token_id": 1}, ["a"]),
    ],
)
def test_texts_begin_and_end_as_in_llama_cpp(changes, expected):
    tokenizer = tokenizer_from({name: value for name, value in fields(**changes).items() if value is not None})
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == expected


@pytest.mark.parametrize("changes", [{"pre": "llama-bpe"}, {"add_bos_token": True}])
def test_a_beginning_that_nobody_knows_is_refused(changes):
    found = {name: value for name, value in fields(**changes).items() if name != "tokenizer.ggml.bos_token_id"}
    with pytest.raises(RunError, match=r"the token bos, and tokenizer\.ggml\.bos_token_id is missing"):
        tokenizer_from(found)


def test_scores_of_pieces_are_required():
    found = fields(**PIECES, bos_token_id=1)
    with pytest.raises(RunError, match=r"it has None for tokenizer\.ggml\.scores"):
        tokenizer_from({name: value for name, value in found.items() if name != "tokenizer.ggml.scores"})


BARE = "{% for message in messages %}{{ message.content }}\n{% endfor %}\n"


@pytest.mark.parametrize("template", [BARE, "<|endoftext|>" + BARE, "{{ bos_token }}" + BARE])
def test_a_chat_begins_once_whether_or_not_its_template_says_it(tmp_path, template):
    say = [
        ("add_string", "tokenizer.ggml.pre", "llama-bpe"),
        ("add_uint32", "tokenizer.ggml.bos_token_id", 1),
        ("add_string", "tokenizer.chat_template", template),
    ]
    ours = llm.load(write(tmp_path, "llama", "smollm2", say=say)[0])
    llm.save(ours, tmp_path / "saved")
    for model in (ours, llm.load(tmp_path / "saved")):
        rows = encode(model.tokenizer, ["hello"], multiple=1).tokens
        assert model.tokenizer.decode(rows[0]) == "<|endoftext|>hello\n"
        assert model.tokenizer("hello")["input_ids"][0] == 1


def test_what_ends_an_answer_is_what_ends_it_in_llama_cpp():
    tokens = ["a", "</s>", "<|eot_id|>", "<|end|>", "<|return|>", "<|call|>", "<|fim_pad|>", "end", "eom"]
    found = {"tokens": tokens, "eos_token_id": 7, "eom_token_id": 8}
    named = {f"tokenizer.ggml.{name}": value for name, value in found.items()}
    assert ends_of(named) == [7, 8, 1, 2, 4, 5, 6]  # <|end|> is between parts where <|return|> and <|call|> are
    assert ends_of({"tokenizer.ggml.tokens": ["a", "<|end|>"]}) == [1]
    pieces = {"tokenizer.ggml.tokens": ["a", "b", "end"], "tokenizer.ggml.model": "llama"}
    assert ends_of(pieces) == [2]  # by its number, where the file does not say it
