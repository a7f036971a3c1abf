"""A llama.cpp file (GGUF): configuration and weights, dequantised, under Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.engine.checks import LARGEST
from eggroll.extras import MissingPackageError, check_installed
from eggroll.llm.model.config import DecoderConfig, Rope, check_count, config_from
from eggroll.llm.model.families.tensors import stored
from eggroll.llm.model.gguf_header import Tensor, read_header
from eggroll.llm.model.gguf_tokens import ends_of, special_id, tokenizer_from, vocabulary_of
from eggroll.llm.model.parts.rotary import frequencies
from eggroll.llm.model.weights_hf import assemble, check_shapes
from eggroll.training.errors import RunError

__all__ = ["read_gguf", "settings_from"]

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}

# The part of a GGUF name after `blk.3.`, for each part of a Hugging Face name after `model.layers.3.`.
PARTS = {
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
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_PARTS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA_27B_LAYERS = 62
# How Llama 3.1 to 3.3 scale their rotary positions, of which a file has only the outcome: what each frequency is
# divided by.
LLAMA_3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
DIVISORS = "rope_freqs.weight"
# What is read of the metadata `llama.…`, and what changes nothing.
METADATA = {
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon"),
    *("embedding_length", "feed_forward_length", "block_count", "context_length"),
    *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
    *("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"),
}
# Whole numbers that a file has to say.
COUNTS = ("embedding_length", "feed_forward_length", "block_count", "context_length", "attention.head_count")
SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf")
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def read_gguf(file: Path, dtype: str | None = None) -> tuple[dict[str, Any], dict[str, Any], Any, DecoderConfig, Any]:
    """Reads all of a file; quantised weights become `dtype`, float32 by default.

    Returns:
        What a Hugging Face folder has: contents of `config.json` and `generation_config.json`, the tokenizer, the
        decoder's configuration, and its weights.

    Raises:
        RunError: not a GGUF file, an unknown architecture or tokenizer, tensors missing or of the wrong shape.
    """
    check_installed("gguf", ".gguf files")
    fields, tensors = read_header(file)
    _refuse_a_part(file, fields)
    try:
        _check_counts(fields, len(tensors))
        settings = settings_from(fields, tied="output.weight" not in tensors)
        _refuse_what_is_not_read(fields, settings)
        tokenizer = tokenizer_from(fields)
        divisors = _divisors(tensors)
        if divisors is not None:
            if "rope_scaling" in settings:
                raise RunError(f"scaling by rope_freqs and by {settings['rope_scaling']} at once is not computed")
            settings["rope_scaling"] = LLAMA_3 | {"factor": float(divisors.max())}
        config = config_from(settings, most_layers=len(tensors))
        generation = {name: settings[name] for name in ("bos_token_id", "pad_token_id") if name in settings}
        generation |= {"eos_token_id": ends} if (ends := ends_of(fields)) else {}
    except MissingPackageError:
        raise
    except RunError as error:
        raise RunError(f"{file}: {error}") from error
    if divisors is not None:
        _check_divisors(file, config, divisors)
    names = {one.name: _gguf_name(one.name, config) for one in stored(config)}
    _check(file, config, names, tensors)

    def read(name: str) -> np.ndarray:
        return _as_hf(name, _plain(file, tensors[names[name]]), settings, config)

    return settings, generation, tokenizer, config, assemble(config, read, dtype or "float32")


def _plain(file: Path, tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor as float32."""
    from gguf import dequantize

    try:
        return dequantize(tensor.data, tensor.kind)
    except NotImplementedError as error:
        kind = tensor.kind.name
        raise RunError(f"{file} has tensors in {kind}, which the package gguf does not read.") from error


def _refuse_a_part(file: Path, fields: Mapping[str, Any]) -> None:
    """A model may lie in several files, of which each has some tensors."""
    named = SPLIT.search(file.name)
    count = fields.get("split.count", int(named.group(1)) if named else 1)
    if count not in (0, 1):
        raise RunError(
            f"{file} is one of the {count} parts of a split GGUF file; a whole one is required: join them with "
            "llama.cpp's `llama-gguf-split --merge FIRST_PART WHOLE.gguf`."
        )


def _check_counts(fields: Mapping[str, Any], most_layers: int) -> None:
    """Raises `RunError` for an unknown architecture, and for whole numbers that are missing or none."""
    kind = fields.get("general.architecture")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise RunError(f"got a GGUF file of the architecture {kind!r}; known are {', '.join(MODEL_TYPES)}.")
    for name in (f"{kind}.{count}" for count in COUNTS):
        if name not in fields:
            raise RunError(f"it lacks metadata that its architecture needs ({name}); convert the model again.")
        check_count(name, fields[name], most_layers if name.endswith("block_count") else LARGEST)


def settings_from(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """The contents of `config.json` from the metadata of a file.

    Args:
        fields: metadata by name.
        tied: True if the file has no output matrix besides the embedding.
    """
    kind = fields["general.architecture"]

    def value(name: str, default: Any = None) -> Any:
        found = fields.get(f"{kind}.{name}", default)
        return float(str(np.float32(found))) if isinstance(found, float) else found  # 1e-05, not 9.999999747378752e-06

    heads, width = value("attention.head_count"), value("embedding_length")
    settings = {
        "model_type": MODEL_TYPES[kind],
        "architectures": [{"gemma3": "Gemma3ForCausalLM"}.get(kind, f"{kind.capitalize()}ForCausalLM")],
        "vocab_size": len(vocabulary_of(fields)),
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", width // heads),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base", 10000.0),
        "tie_word_embeddings": tied,
    }
    if kind == "gemma3":
        settings |= {"sliding_window": value("attention.sliding_window"), "rope_local_base_freq": 10000.0}
        # The file does not say it: head_dim, but for the 27B model.
        scale = width // heads if settings["num_hidden_layers"] == GEMMA_27B_LAYERS else settings["head_dim"]
        settings |= {"query_pre_attn_scalar": scale, "hidden_activation": "gelu_pytorch_tanh"}
    settings |= _scaled_positions(value)
    for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        if (index := special_id(fields, theirs)) is not None:
            settings[f"{ours}_token_id"] = index
    return settings


def _scaled_positions(value: Callable[..., Any]) -> dict[str, Any]:
    """As llama.cpp has it: linear where no type is said, by the older name where the newer is missing, 0 meaning 1."""
    scaling = value("rope.scaling.type", "linear")
    factor = value("rope.scaling.factor", value("rope.scale_linear", 1.0)) or 1.0
    if scaling not in ("none", "linear"):
        raise RunError(
            f"got rotary positions of the type {scaling!r}; of a GGUF file none and linear are read: load that "
            "model from its Hugging Face folder."
        )
    return {"rope_scaling": {"rope_type": scaling, "factor": factor}} if scaling == "linear" and factor != 1 else {}


def _refuse_what_is_not_read(fields: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Metadata of the architecture that is neither read nor known to change nothing may change what is computed."""
    kind = fields["general.architecture"]
    allowed = {
        "rope.dimension_count": [settings["head_dim"]],
        "attention.value_length": [settings["head_dim"]],
        "attention.causal": [True],
        "rope.scaling.attn_factor": [1.0],
        "expert_count": [0],
        "expert_used_count": [0],
    }
    if kind == "gemma3":
        pattern = [bool((i + 1) % 6) for i in range(settings["num_hidden_layers"])]
        allowed["attention.sliding_window"] = [settings["sliding_window"]]
        allowed["attention.sliding_window_pattern"] = [6, pattern]
        allowed["rope.freq_base_swa"] = [settings["rope_local_base_freq"]]
    for name, found in fields.items():
        own = name.removeprefix(f"{kind}.")
        if own != name and own not in METADATA and found not in allowed.get(own, []):
            only = " or ".join(map(repr, allowed.get(own, ()))) or "files without it"
            raise RunError(
                f"it has {name}={found!r}, which the decoder does not compute; {only} is required: load that model "
                "from its Hugging Face folder, or choose another."
            )


def _gguf_name(name: str, config: DecoderConfig) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    table = PARTS | (GEMMA_PARTS if config.norm_offset else {})
    return f"blk.{layer}.{table[part]}.{kind}"


def _divisors(tensors: Mapping[str, Tensor]) -> np.ndarray | None:
    """What the frequencies of rotary positions are divided by; None for nothing but ones."""
    if DIVISORS not in tensors:
        return None
    if (kind := tensors[DIVISORS].kind.name) != "F32":
        raise RunError(f"its tensor {DIVISORS} is {kind}; F32 is required: convert the model again.")
    found = np.array(tensors[DIVISORS].data).view(np.float32).reshape(-1)
    return None if np.all(found == 1) else found


def _check_divisors(file: Path, config: DecoderConfig, divisors: np.ndarray) -> None:
    rope = config.rope or Rope()
    plain, scaled = (frequencies(one, config.head_width) for one in (Rope(rope.theta), rope))
    if divisors.shape != plain.shape or not np.allclose(scaled * divisors, plain, rtol=1e-5, atol=0):
        raise RunError(
            f"{file} scales rotary positions by its tensor {DIVISORS} in another way than Llama 3.1 to 3.3; load that "
            "model from its Hugging Face folder."
        )


def _check(file: Path, config: DecoderConfig, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    theirs = {gguf: hf for hf, gguf in names.items()}
    shapes = {theirs.get(name, name): tensor.shape for name, tensor in tensors.items() if name != DIVISORS}
    check_shapes(str(file), config, shapes)


def _as_hf(name: str, weight: np.ndarray, settings: Mapping[str, Any], config: DecoderConfig) -> np.ndarray:
    """Undoes what llama.cpp's converter does to a tensor."""
    heads = {"q_proj": config.heads, "k_proj": config.key_value_heads}.get(name.split(".")[-2])
    if settings["model_type"] == "llama" and heads:
        # It rotates neighbours, where Hugging Face rotates features half a head apart.
        return weight.reshape(heads, config.head_width // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
    if config.norm_offset and name.endswith("norm.weight"):
        return weight - np.float32(1)  # it stores 1 + weight
    return weight
