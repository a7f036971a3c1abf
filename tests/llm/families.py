"""Tiny configurations of each family; imports nothing, for scripts that run without JAX."""

from __future__ import annotations

from typing import Any

VOCABULARY = 260

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
    "qwen2-window": {
        "model_type": "qwen2",
        **SIZES,
        "rope_theta": 10000.0,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
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
