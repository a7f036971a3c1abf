"""GGUF files: written as llama.cpp's converter writes them, read back to the model that they were made of."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.numpy import load_file

from eggroll import llm
from eggroll.llm.model.gguf_file import settings_from
from eggroll.llm.model.gguf_tokens import tokenizer_from
from eggroll.training.errors import RunError
from tests.llm import tiny
from tests.llm.families import LLAMA3

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LLAMA_NAMES = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def permuted(weight, heads):
    """As convert_hf_to_gguf.py does it for Llama: halves of a head become neighbours."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def metadata(writer, kind, settings):
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_freq_base(settings["rope_theta"])
    if "head_dim" in settings:
        writer.add_key_length(settings["head_dim"])
    if kind == "gemma3":
        writer.add_sliding_window(settings["sliding_window"])
    vocabulary = tiny.tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3] * len(tiny.SPECIAL) + [1] * 256)
    writer.add_eos_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tiny.TEMPLATE)


def write(path, kind, family, *, quantised=None, change=lambda tensors: tensors, say=(), lose=(), **sizes):
    """A GGUF file of a tiny model, and the Hugging Face folder that it was made of.

    `say` is more metadata, as (method of the writer, arguments…), and `lose` names metadata that is left out.
    """
    settings = tiny.SETTINGS[family] | {"rope_scaling": None, "layer_types": None}
    if kind == "gemma3":
        settings |= {"rope_local_base_freq": 10000.0, "query_pre_attn_scalar": settings["head_dim"]}
    settings |= sizes
    tiny.folder(path / "hf", family, **settings)
    file = path / "model.gguf"
    writer = GGUFWriter(file, kind)
    metadata(writer, kind, settings)
    for lost in lose:
        del writer.kv_data[0][lost]
    for method, *arguments in say:
        writer.kv_data[0].pop(arguments[0], None)
        getattr(writer, method)(*arguments)
    tensors = {}
    for name, weight in load_file(path / "hf/model.safetensors").items():
        for heads, part in ((settings["num_attention_heads"], "q_proj"), (settings["num_key_value_heads"], "k_proj")):
            weight = permuted(weight, heads) if part in name and kind == "llama" else weight
        weight = weight + 1 if kind == "gemma3" and "norm" in name else weight
        for old, new in (NAMES | (GEMMA_NAMES if kind == "gemma3" else LLAMA_NAMES)).items():
            name = name.replace(old, new)
        tensors[name] = weight
    for name, weight in change(tensors).items():
        if quantised is not None and weight.ndim == 2 and weight.shape[1] % 32 == 0:
            writer.add_tensor(name, quantize(weight, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, path / "hf"


def weights(language):
    return jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.split(language.model, nnx.Param)[1]))


@pytest.mark.parametrize(
    ("kind", "family"),
    [("llama", "llama"), ("llama", "smollm2"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma3", "gemma3")],
)
def test_a_file_gives_the_model_that_it_was_made_of(tmp_path, kind, family):
    file, folder = write(tmp_path, kind, family)
    ours, theirs = llm.load(file), llm.load(folder)
    assert ours.config == theirs.config
    for (path, a), (_, b) in zip(weights(ours), weights(theirs), strict=True):
        atol = 1e-6 if kind == "gemma3" and "norm" in str(path) else 0  # 1 + weight is rounded in the file
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    assert ours.stop == (3, 1) and ours.pad == 0  # <|endoftext|> ends an answer by its name, as in llama.cpp
    llm.save(ours, tmp_path / "saved")
    again = llm.load(tmp_path / "saved")
    assert again.config == ours.config and again.stop == ours.stop
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(weights(ours), weights(again), strict=True))
    assert again.tokenizer.encode("Grüße<|im_end|> the") == ours.tokenizer.encode("Grüße<|im_end|> the")


def llama_cpps_divisors(head_width, theta, factor):
    """As convert_hf_to_gguf.py has them for `rope_type` llama3, with the numbers of Llama 3.1 to 3.3, in float64."""
    found = []
    for i in range(0, head_width, 2):
        length = 2 * np.pi * theta ** (i / head_width)
        if length < 8192 / 4:
            found.append(1.0)
        elif length > 8192 / 1:
            found.append(factor)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])  # Llama 3.1, 3.2
def test_scaled_positions_of_llama_3(tmp_path, factor):
    scaling = LLAMA3 | {"factor": factor, "original_max_position_embeddings": 8192}
    table = {"rope_freqs.weight": llama_cpps_divisors(64, 500000.0, factor)}
    assert len(set(table["rope_freqs.weight"].tolist())) > 3  # those between the two limits, too
    sizes = {"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": scaling}
    file, folder = write(tmp_path, "llama", "llama", change=lambda tensors: tensors | table, **sizes)
    assert llm.load(file).config == llm.load(folder).config


def test_quantised_matrices_are_what_they_stand_for(tmp_path):
    kind = GGMLQuantizationType.Q8_0
    file, folder = write(tmp_path, "qwen2", "qwen2", quantised=kind, hidden_size=32)
    exact, rounded, original = llm.load(file), llm.load(file, dtype="bfloat16"), llm.load(folder)
    assert exact.model.embed.dtype == "float32" and rounded.model.embed.dtype == "bfloat16"
    stands_for = dequantize(quantize(np.asarray(original.model.layers.gate[1]).T, kind), kind)
    assert np.array_equal(exact.model.layers.gate[1].T, stands_for)
    assert not np.array_equal(exact.model.layers.gate[...], original.model.layers.gate[...])
    assert np.array_equal(exact.model.layers.down[...], original.model.layers.down[...])  # rows of 24 are not quantised
    assert np.array_equal(rounded.model.embed[...], exact.model.embed[...].astype("bfloat16"))


BROKEN = [
    (
        {"change": lambda t: {k: v for k, v in t.items() if k != "blk.1.attn_q.weight"}},
        r"lacks model\.layers\.1\.self_attn\.q",
    ),
    (
        {"change": lambda t: t | {"blk.0.ffn_gate_exps.weight": np.ones(3, np.float32)}},
        r"unexpected blk\.0\.ffn_gate_exps",
    ),
    ({"change": lambda t: t | {"rope_freqs.weight": np.full(2, 8, np.float32)}}, r"rope_freqs\.weight"),
    (
        {"change": lambda t: t | {"output_norm.weight": np.ones(8, np.float32)}},
        r"model\.norm\.weight has the shape \[8\]",
    ),
]


@pytest.mark.parametrize(("how", "message"), BROKEN)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, how, message):
    file, _ = write(tmp_path, "llama", "smollm2", **how)
    with pytest.raises(RunError, match=message):
        llm.load(file)


def test_other_architectures_and_no_gguf_at_all(tmp_path):
    file = tmp_path / "a.gguf"
    writer = GGUFWriter(file, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(RunError, match="architecture 'mamba'; known are llama"):
        llm.load(file)
    file.write_bytes(b"GGUFthis is none")
    with pytest.raises(RunError, match="not a whole GGUF file"):
        llm.load(file)


LOST = {
    "tokenizer.ggml.model": "the tokenizer None",
    "tokenizer.ggml.pre": "splits words in the way None",
    "llama.embedding_length": "lacks metadata",
    "llama.block_count": "lacks metadata",
    "tokenizer.ggml.tokens": r"it has None for tokenizer\.ggml\.tokens",
    "tokenizer.ggml.token_type": r"it has None for tokenizer\.ggml\.token_type",
}


@pytest.mark.parametrize(("lost", "message"), LOST.items())
def test_metadata_that_is_missing_is_told(tmp_path, lost, message):
    file, _ = write(tmp_path, "llama", "smollm2", lose=[lost])
    with pytest.raises(RunError, match=message):
        llm.load(file)


def test_a_quantisation_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    def unknown(*_):
        raise NotImplementedError

    monkeypatch.setattr("gguf.dequantize", unknown)
    with pytest.raises(RunError, match="tensors in F32, which the package gguf does not read"):
        llm.load(write(tmp_path, "llama", "smollm2")[0])


@pytest.mark.parametrize(("layers", "scale"), [(26, 128), (62, 168)])
def test_attention_of_gemma_27b_is_scaled_by_its_width(layers, scale):
    """huggingface.co/google/gemma-3-27b-it and 1b-it, config.json: `query_pre_attn_scalar`."""
    sizes = {"block_count": layers, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    found = {f"gemma3.{name}": value for name, value in sizes.items()}
    found |= {"general.architecture": "gemma3", "tokenizer.ggml.tokens": ["a"]}
    assert settings_from(found, tied=True)["query_pre_attn_scalar"] == scale


def fields(**changes):
    """Metadata of a byte-level tokenizer that knows two merges."""
    tokens = ["<s>", "</s>", *sorted(tiny.tokenizer().get_vocab().keys() - set(tiny.SPECIAL)), "Ġt", "12"]
    found = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": [3, 3] + [1] * (len(tokens) - 2)}
    found |= {"merges": ["Ġ t", "1 2"], "bos_token_id": 0, "eos_token_id": 1} | changes
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


TEXTS = ["Hello, world 12!", " leading\n\nand  double", "don't 你好 🙂\ttab\r\n", "</s> a special one <s>", ""]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_byte_level_tokenizers_give_every_text_back(pre):
    tokenizer = tokenizer_from(fields(pre=pre))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == "<s>" * (pre == "llama-bpe") + text
    tokenizer = tokenizer_from(fields(pre=pre, add_bos_token=False))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12</s> t")) == (
        ["12", "</s>", "Ġt"] if pre in ("gpt-2", "llama-bpe") else ["1", "2", "</s>", "Ġt"]  # digits one by one
    )
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    begins = tokenizer_from(fields(pre=pre, add_bos_token=True))
    assert begins.encode("a") == [0, *tokenizer.encode("a")]


def test_sentence_pieces_merge_the_best_first_and_fall_back_to_bytes():
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "a",
        "b",
        "c",
        "ab",
        "bc",
        "▁ab",
        "abc",
    ]
    scores = [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -2.0, -1.0, -3.0, -4.0]
    made = {"tokens": tokens, "scores": scores, "token_type": [2, 3, 3] + [6] * 256 + [1] * 8, "model": "llama"}
    for prefix, expected in ((False, ["a", "bc"]), (True, ["▁", "a", "bc"])):
        made |= {"unknown_token_id": 0, "bos_token_id": 1, "add_space_prefix": prefix}
        assert tokenizer_from(fields(**made))("ab")["input_ids"][0] == 1  # as llama.cpp, unless the file says otherwise
        tokenizer = tokenizer_from(fields(**made, add_bos_token=False))
        pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("abcx"))
        assert pieces in ([*expected[:-2], "abc", "<0x78>"], [*expected, "<0x78>"], ["▁", "abc", "<0x78>"])
        assert tokenizer.decode(tokenizer.encode("ab cab é")) == "ab cab é"


def test_unknown_tokenizers_are_refused_by_name():
    with pytest.raises(RunError, match="tokenizer 'bert'; known are gpt2, llama"):
        tokenizer_from(fields(model="bert"))
    with pytest.raises(RunError, match="in the way 'tekken'; known are gpt-2, smollm"):
        tokenizer_from(fields(pre="tekken"))
