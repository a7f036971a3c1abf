"""Families whose layers have layer norms, among them those of GPT-2."""

from __future__ import annotations

from eggroll.llm.model.families import places
from eggroll.llm.model.families.family import (
    ATTENTION,
    BIASED,
    EPS,
    GPT_SIZES,
    LAYER_NORM,
    NEIGHBOURS,
    PLAIN_MLP,
    QKV,
    Family,
    Settings,
)
from eggroll.llm.model.features import Rope

__all__ = ["FAMILIES"]


def _stablelm(full: Settings) -> Settings:
    norms = ("attention_norm",) if full["use_parallel_residual"] else ("attention_norm", "mlp_norm")
    return {"parallel": full["use_parallel_residual"], "norms": norms}


def _gpt2(full: Settings) -> Settings:
    scale = None if full["scale_attn_weights"] else 1.0
    return {"rope": None, "positions": full["max_position_embeddings"], "attention_scale": scale}


def _cohere2(full: Settings) -> Settings:
    window = full.get("sliding_window")
    return {"rotated": tuple(kind == "sliding_attention" and window is not None for kind in full["layer_types"])}


def _gptj(full: Settings) -> Settings:
    head_width = full["hidden_size"] // full["num_attention_heads"]
    return {"rope": Rope(share=full["rotary_dim"] / head_width, neighbours=True)}


FAMILIES: dict[str, Family] = {
    "olmo": Family(
        "OLMo",
        fixed={"norm": "layer", "norm_scales": False, "epsilon": 1e-5},
        numbers={"clip_qkv": "clip"},
        switches=BIASED,
    ),
    "stablelm": Family(
        "StableLM 2",
        fixed=LAYER_NORM,
        switches={"use_qkv_bias": {"biases": QKV}, "qk_layernorm": {"query_key_norm": "heads"}},
        sizes=EPS,
        more=_stablelm,
        reads=("use_parallel_residual", "partial_rotary_factor"),
        places=places.PLACES | places.HEAD_NORMS,
    ),
    "gpt2": Family(
        "GPT-2",
        fixed={**LAYER_NORM, **PLAIN_MLP, "biases": (*ATTENTION, "up", "down")},
        sizes=GPT_SIZES,
        more=_gpt2,
        reads=("scale_attn_weights",),
        only={"scale_attn_by_inverse_layer_idx": (False,)},
        places=places.GPT2,
        layers="transformer.h",
        outer=places.GPT_OUTER,
    ),
    "gpt_neox": Family(
        "GPT-NeoX, Pythia",
        fixed={**LAYER_NORM, **PLAIN_MLP, "biases": ("up", "down")},
        switches={**BIASED, "use_parallel_residual": {"parallel": True}},
        sizes=EPS,
        reads=("rotary_pct", "rotary_emb_base", "partial_rotary_factor"),
        places=places.NEOX,
        layers="gpt_neox.layers",
        outer=places.NEOX_OUTER,
    ),
    "gptj": Family(
        "GPT-J",
        fixed={**LAYER_NORM, **PLAIN_MLP, **NEIGHBOURS, "biases": ("up", "down", "head")}
        | {"parallel": True, "norms": ("attention_norm",)},
        sizes=GPT_SIZES,
        more=_gptj,
        reads=("rotary_dim",),
        only={"rotary": (True,), "scale_attn_weights": (True,)},
        places=places.GPTJ,
        layers="transformer.h",
        outer=places.GPT_OUTER,
    ),
    "phi": Family(
        "Phi-1 and Phi-2",
        fixed={**LAYER_NORM, **PLAIN_MLP, "biases": (*ATTENTION, "up", "down", "head")}
        | {"parallel": True, "norms": ("attention_norm",)},
        sizes=EPS,
        reads=("partial_rotary_factor",),
        only={"qk_layernorm": (False,)},
        places=places.PLACES | places.PHI,
        outer=places.OUTER | places.PHI_OUTER,
    ),
    "starcoder2": Family(
        "StarCoder2",
        fixed={**LAYER_NORM, **PLAIN_MLP},
        switches={"use_bias": {"biases": (*ATTENTION, "up", "down")}},
        sizes={"norm_epsilon": "rms_norm_eps"},
        windows="all",
        only={"mlp_type": ("default",), "norm_type": ("layer_norm",), "scale_attn_weights": (True,)}
        | {"attention_softmax_in_fp32": (True,), "scale_attention_softmax_in_fp32": (True,)}
        | {"activation_function": ("gelu_pytorch_tanh",)},
        places=places.PLACES | places.STARCODER,
    ),
    "nemotron": Family(
        "Nemotron",
        fixed={**LAYER_NORM, **PLAIN_MLP, "norm_offset": 1.0},
        switches={**BIASED, "mlp_bias": {"biases": ("up", "down")}},
        sizes={"norm_eps": "rms_norm_eps"},
        reads=("partial_rotary_factor",),
    ),
    "cohere": Family(
        "Command R",
        fixed={"norm": "layer", "parallel": True, "norms": ("attention_norm",), **NEIGHBOURS},
        numbers={"logit_scale": "logits_scale"},
        switches={**BIASED, "use_qk_norm": {"query_key_norm": "heads"}},
        sizes=EPS,
    ),
    "cohere2": Family(
        "Command R7B and A",
        fixed={"norm": "layer", "parallel": True, "norms": ("attention_norm",), **NEIGHBOURS},
        numbers={"logit_scale": "logits_scale"},
        switches=BIASED,
        sizes=EPS,
        windows="layer_types",
        more=_cohere2,
        reads=("sliding_window_pattern",),
    ),
}
