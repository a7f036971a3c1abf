"""Tiny language models with random weights: one of each family, and a tokenizer of bytes with a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eggroll.llm.config import config_from
from eggroll.llm.decoder import Decoder
from eggroll.llm.loading import LanguageModel, save

SPECIAL = ("<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Contents of config.json by family, in the style of transformers 4, as most checkpoints have it.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES, "rope_theta": 10000.0, "tie_word_embeddings": False},
    "llama3": {"model_type": "llama", **SIZES, "rope_theta": 500.0, "rope_scaling": LLAMA3, "head_dim": 8},
    "smollm2": {"model_type": "llama", **SIZES, "rope_theta": 100000.0, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **SIZES, "rope_theta": 1000000.0, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SIZES, "rope_theta": 1000000.0, "tie_word_embeddings": True, "head_dim": 8},
    "gemma3": {
        "model_type": "gemma3_text",
        **SIZES,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "query_pre_attn_scalar": 24,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, so that every text comes back as it went in."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=list(SPECIAL)
    )
    made.chat_template = TEMPLATE
    return made


def language_model(
    family: str = "smollm2", *, dtype: Any = jnp.float32, seed: int = 0, **changes: Any
) -> LanguageModel:
    """A random model of a family, with `changes` to its settings."""
    settings = SETTINGS[family] | changes
    config = config_from(settings)
    model = Decoder(config, rngs=nnx.Rngs(seed), dtype=dtype)
    return LanguageModel(model, tokenizer(), config, stop=(1, 3), pad=0, source=family, settings=settings)


def folder(path: Path, family: str = "smollm2", **options: Any) -> Path:
    """A Hugging Face folder with that model."""
    save(language_model(family, **options), path)
    return path


def edit(path: Path, **changes: Any) -> None:
    """Changes a JSON file; None removes a key."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}), encoding="utf-8")
