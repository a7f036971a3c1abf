"""Tiny configurations of the architectures and variants that are read; imports no JAX, for scripts that run without it.

Weights are drawn from their names, so that PyTorch and JAX have the same without a file of them.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

VOCABULARY = 61
TIME, ANSWER, STARTS = 9, 12, (0, 3, 6)  # columns of a prompt, tokens of an answer, pad columns of each row

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
RMS = {**BASE, "rms_norm_eps": 1e-5}
LAYER = {**BASE, "layer_norm_eps": 1e-5}
NEOX = {name: value for name, value in LAYER.items() if name != "num_key_value_heads"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
TWO = ["sliding_attention", "full_attention"]
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.5, 5.0],
    "original_max_position_embeddings": 6,
}
GPT = {
    **{"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4},
    **{"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0},
}
MULTIPLIED = {
    **{"embedding_multiplier": 3.0, "residual_multiplier": 0.6},
    **{"attention_multiplier": 0.2, "logits_scaling": 0.7},
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
LOCAL = {"num_local_experts": 5, "num_experts_per_tok": 2}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 24, "sliding_window": 4}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}


def _of(kind: str, base: Any = RMS, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, **base, **changes}


# Contents of config.json by case.
CASES: dict[str, dict[str, Any]] = {
    "llama-biases": _of("llama", attention_bias=True, mlp_bias=True),
    "llama-linear": _of("llama", rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "llama-yarn": _of("llama", rope_scaling={**YARN, "beta_fast": 4.0, "beta_slow": 0.5}, rope_theta=100.0),
    "llama-dynamic": _of("llama", rope_scaling=DYNAMIC, max_position_embeddings=6),
    "llama-longrope": _of("llama", rope_scaling={**LONG, "factor": 8.0}),
    "qwen2-yarn": _of("qwen2", rope_scaling={"type": "yarn", **YARN}, tie_word_embeddings=True),
    "qwen2-dynamic": _of("qwen2", rope_scaling=DYNAMIC, max_position_embeddings=6),
    "qwen3-yarn": _of("qwen3", rope_scaling=YARN, head_dim=16),
    "qwen3-dynamic": _of("qwen3", rope_scaling=DYNAMIC, head_dim=8, max_position_embeddings=6),
    "qwen3-biases": _of("qwen3", head_dim=8, attention_bias=True),
    "qwen3-window": _of("qwen3", head_dim=8, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "mistral": _of("mistral", sliding_window=4),
    "mistral-full": _of("mistral", sliding_window=None, head_dim=16),
    "ministral": _of("ministral", sliding_window=4, layer_types=TWO, head_dim=8),
    "ministral3": _of(
        "ministral3",
        rope_parameters={
            **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6, "rope_theta": 1000.0},
            **{"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
        },
    ),
    "gemma": _of("gemma", head_dim=16, hidden_act="gelu_pytorch_tanh"),
    "gemma2": _of("gemma2", layer_types=TWO, **GEMMA, **CAPS),
    "gemma3-wrapper": {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1],
        "text_config": _of("gemma3_text", layer_types=TWO, **GEMMA, rope_theta=1000.0),
        "vision_config": {
            **{"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
        },
        **{"mm_tokens_per_image": 4, "image_token_index": 60, "boi_token_index": 58, "eoi_token_index": 59},
    },
    "phi3": _of("phi3", sliding_window=4),
    "phi3-longrope": _of(
        "phi3", rope_scaling={**LONG, "type": "longrope"}, original_max_position_embeddings=6, sliding_window=None
    ),
    "phi4-mini": _of(
        "phi3",
        rope_scaling={**LONG, "short_factor": [1.0, 1.2, 1.3], "long_factor": [1.0, 3.0, 5.0]},
        original_max_position_embeddings=14,  # which answers cross
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
    ),
    "olmo": _of("olmo", BASE, clip_qkv=0.8),
    "olmo2": _of("olmo2"),
    "olmo3": _of("olmo3", sliding_window=4, layer_types=TWO, rope_scaling=YARN, rope_theta=500000.0),
    "smollm3": _of("smollm3", no_rope_layers=[1, 0], tie_word_embeddings=True),
    "granite": _of("granite", **MULTIPLIED, tie_word_embeddings=True),
    "stablelm": _of(
        "stablelm", LAYER, use_qkv_bias=True, partial_rotary_factor=0.25, num_key_value_heads=4, head_dim=8
    ),
    "stablelm-parallel": _of(
        "stablelm", LAYER, use_parallel_residual=True, qk_layernorm=True, partial_rotary_factor=0.5
    ),
    "seed_oss": _of("seed_oss", head_dim=16, attention_bias=True, attention_out_bias=True),
    "ernie4_5": _of("ernie4_5", head_dim=16, use_bias=True),
    "exaone4": _of("exaone4", sliding_window=4, layer_types=TWO),
    "exaone4-full": _of("exaone4", sliding_window=None, layer_types=[TWO[1]] * 2),
    "glm": _of("glm", head_dim=16, attention_bias=True, partial_rotary_factor=0.5),
    "glm4": _of("glm4", head_dim=16, partial_rotary_factor=0.5),
    "gpt2": _of("gpt2", GPT, activation_function="gelu_new"),
    "gpt_neox": _of("gpt_neox", NEOX, hidden_act="gelu", rotary_pct=0.25, rotary_emb_base=10000),
    "gpt_neox-serial": _of("gpt_neox", NEOX, use_parallel_residual=False, rotary_pct=1.0, attention_bias=False),
    "gptj": _of("gptj", GPT, rotary_dim=4, n_inner=24, tie_word_embeddings=False),
    "phi": _of("phi", LAYER, partial_rotary_factor=0.5, hidden_act="gelu_new", num_hidden_layers=3),
    "starcoder2": _of(
        "starcoder2",
        BASE,
        sliding_window=4,
        hidden_act="gelu_pytorch_tanh",
        norm_epsilon=1e-5,
        tie_word_embeddings=False,
    ),
    "nemotron": _of("nemotron", BASE, hidden_act="relu2", partial_rotary_factor=0.5, head_dim=8, norm_eps=1e-5),
    "arcee": _of("arcee", hidden_act="relu2", rope_scaling=YARN),
    "cohere": _of("cohere", LAYER, logit_scale=0.3, use_qk_norm=True),
    "cohere2": _of("cohere2", LAYER, logit_scale=0.3, sliding_window=4, layer_types=TWO),
    "helium": _of("helium", head_dim=8),
    "hunyuan": _of("hunyuan_v1_dense", head_dim=16),
    "qwen2_moe": _of("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=16, norm_topk_prob=False),
    "qwen3_moe": _of("qwen3_moe", **EXPERTS, head_dim=8, norm_topk_prob=True),
    "olmoe": _of("olmoe", num_experts=5, num_experts_per_tok=2, norm_topk_prob=False, clip_qkv=0.8),
    "mixtral": _of("mixtral", **LOCAL, sliding_window=4),
    "gpt_oss": _of(
        "gpt_oss",
        **LOCAL,
        head_dim=8,
        attention_bias=True,
        sliding_window=4,
        swiglu_limit=1.0,
        layer_types=TWO,
        rope_scaling={**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        rope_theta=1000.0,
    ),
    "granitemoe": _of("granitemoe", **LOCAL, **MULTIPLIED),
}
AROUND_0 = ("gemma", "gemma2", "gemma3_text", "gemma3", "nemotron")  # families whose norms scale by 1 + weight
QUIET = (*AROUND_0, "gpt2")


def draw(kind: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a checkpoint, none of whose numbers is small enough to be overlooked."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    normal = random.normal(size=shape).astype(np.float32)
    if len(shape) == 1 or "embed" in name or "wte" in name or "wpe" in name:
        centre = float(len(shape) == 1 and name.endswith("weight") and kind not in AROUND_0)
        # Of some less, such as Gemma's, which grow by √width: answers would only repeat the last token.
        return np.float32(centre) + np.float32(0.1 if kind in QUIET and len(shape) > 1 else 0.3) * normal
    return np.float32(1.5 * shape[-1] ** -0.5) * normal


def prompts() -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[rows, TIME]` and the pads on each row's left."""
    return np.random.default_rng(0).integers(4, VOCABULARY, (len(STARTS), TIME)).astype(np.int32), np.array(STARTS)
