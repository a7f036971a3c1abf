"""Families whose layers have RMS norms and a gated MLP, as Llama has."""

from __future__ import annotations

from eggroll.llm.model.families import places
from eggroll.llm.model.families.family import (
    ACT,
    AFTER,
    ATTENTION,
    BIASED,
    BIASED_ALL,
    BIASED_QKV,
    MLP,
    MULTIPLIERS,
    NEIGHBOURS,
    PLAIN_MLP,
    QKV,
    QWEN_WINDOW,
    SANDWICH,
    SOFTCAPS,
    Family,
    Settings,
    granite,
)
from eggroll.llm.model.features import Rope

__all__ = ["FAMILIES"]

GEMMA = {"norm_offset": 1.0}
# What Microsoft's files name as their code: the classes that transformers has had since.
PHI3_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}


def _gemma(full: Settings) -> Settings:
    scale = full.get("query_pre_attn_scalar")
    return {"embed_scale": full["hidden_size"] ** 0.5, "attention_scale": None if scale is None else scale**-0.5}


def _smollm3(full: Settings) -> Settings:
    return {"rotated": tuple(bool(one) for one in full["no_rope_layers"])}


def _exaone4(full: Settings) -> Settings:
    if full.get("sliding_window") is None:
        return {}
    return {"rotated": tuple(kind == "sliding_attention" for kind in full["layer_types"])}


def _olmo3(full: Settings) -> Settings:
    given = full["rope_parameters"]  # versions of transformers before 5.2 scale sliding layers as well, OLMo does not
    return {"sliding_rope": Rope(given["rope_theta"])} if "rope_theta" in given else {}


FAMILIES: dict[str, Family] = {
    "llama": Family("Llama 2 and 3, TinyLlama, SmolLM2", switches=BIASED_ALL),
    "mistral": Family("Mistral 7B, Small, Nemo", windows="all"),
    "ministral": Family("Ministral 8B", windows="layer_types"),
    "ministral3": Family("Ministral 3", windows="all", rotary=("llama_4_scaling_beta",)),
    "qwen2": Family("Qwen2 and Qwen2.5", fixed={"biases": QKV}, windows="layer_types", reads=QWEN_WINDOW),
    "qwen3": Family(
        "Qwen3",
        fixed={"query_key_norm": "head"},
        switches=BIASED,
        windows="layer_types",
        reads=QWEN_WINDOW,
    ),
    "gemma": Family(
        "Gemma", fixed=GEMMA, switches=BIASED, more=_gemma, only={"hidden_activation": (None, "gelu_pytorch_tanh")}
    ),
    "gemma2": Family(
        "Gemma 2",
        fixed={**GEMMA, "norms": SANDWICH},
        numbers=SOFTCAPS,
        switches=BIASED,
        sizes=ACT,
        windows="layer_types",
        more=_gemma,
        reads=("query_pre_attn_scalar",),
        places=places.PLACES | places.SANDWICH,
    ),
    "gemma3_text": Family(
        "Gemma 3, text only",
        fixed={**GEMMA, "norms": SANDWICH, "query_key_norm": "head"},
        sizes=ACT,
        windows="layer_types",
        more=_gemma,
        reads=("query_pre_attn_scalar", "rope_local_base_freq", "sliding_window_pattern"),
        places=places.PLACES | places.SANDWICH,
    ),
    "phi3": Family(
        "Phi-3, Phi-3.5 and Phi-4",
        windows="all",
        reads=("original_max_position_embeddings", "partial_rotary_factor"),
        only={"auto_map": (None, PHI3_CODE, PHI3_CODE | {"AutoTokenizer": "Xenova/gpt-4o"})},
        places=places.PLACES | places.FUSED_QKV | places.FUSED_GATE,
    ),
    "olmo2": Family(
        "OLMo 2",
        fixed={"norms": AFTER, "query_key_norm": "width"},
        switches=BIASED,
        places=places.PLACES | places.AFTER,
    ),
    "olmo3": Family(
        "OLMo 3",
        fixed={"norms": AFTER, "query_key_norm": "width"},
        switches=BIASED,
        windows="layer_types",
        more=_olmo3,
        places=places.PLACES | places.AFTER,
    ),
    "smollm3": Family(
        "SmolLM3",
        switches=BIASED_ALL,
        windows="layer_types",
        more=_smollm3,
        reads=(*QWEN_WINDOW, "no_rope_layers", "no_rope_layer_interval"),
    ),
    "granite": Family("Granite 3", numbers=MULTIPLIERS, switches=BIASED_ALL, more=granite, reads=("logits_scaling",)),
    "seed_oss": Family(
        "Seed-OSS",
        switches={**BIASED_QKV, "attention_out_bias": {"biases": ("out",)}, "mlp_bias": {"biases": MLP}},
    ),
    "ernie4_5": Family("Ernie 4.5", fixed=NEIGHBOURS, switches={"use_bias": {"biases": (*ATTENTION, *MLP)}}),
    "exaone4": Family(
        "EXAONE 4",
        fixed={"norms": AFTER, "query_key_norm": "head"},
        windows="layer_types",
        more=_exaone4,
        reads=("sliding_window_pattern",),
        places=places.PLACES | places.AFTER,
    ),
    "glm": Family(
        "GLM-4-9B",
        fixed=NEIGHBOURS,
        switches=BIASED_QKV,
        reads=("partial_rotary_factor",),
        places=places.PLACES | places.FUSED_GATE,
    ),
    "glm4": Family(
        "GLM-4-0414",
        fixed={**NEIGHBOURS, "norms": SANDWICH},
        switches=BIASED_QKV,
        reads=("partial_rotary_factor",),
        places=places.PLACES | places.GLM4 | places.FUSED_GATE,
    ),
    "arcee": Family("Arcee", fixed=PLAIN_MLP, switches={**BIASED, "mlp_bias": {"biases": ("up", "down")}}),
    "helium": Family("Helium", fixed=NEIGHBOURS, switches={**BIASED_QKV, "mlp_bias": {"biases": MLP}}),
    "hunyuan_v1_dense": Family(
        "Hunyuan",
        fixed={"query_key_norm": "head", "norm_rotated": True},
        switches=BIASED,
        places=places.PLACES | places.HUNYUAN,
    ),
}
