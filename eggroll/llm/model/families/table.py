"""The families of decoders that are read: what each one's configuration says of features.

Nothing here computes: the decoder knows features alone. What a family's configuration may say is in these lists, or it is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eggroll.llm.model.families import places
from eggroll.llm.model.features import Experts, Rope

__all__ = ["FAMILIES", "Family"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What is read of one `model_type`.

    Attributes:
        about: its models, for messages.
        fixed: features that it has, whatever its configuration says.
        numbers: settings whose value is a feature's.
        switches: settings that are true or false, and the features where they are true; biases add up.
        sizes: its own names for settings that others have, too.
        windows: which layers see a window: those of `layer_types`, "all", or none.
        more: what no table says: a function from the settings to features.
        reads: settings that `more` reads.
        rotary: what `more` reads in the description of rotary positions.
        only: settings with the values at which the decoder does what they say.
        places: where the weights of a layer lie.
        layers: what names of tensors of layers begin with.
        outer: names of the tensors outside the layers.
    """

    about: str
    fixed: Settings = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, Settings] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    windows: str = ""
    more: Callable[[Settings], Settings] | None = None
    reads: tuple[str, ...] = ()
    rotary: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    places: Mapping[Any, places.Place] = field(default_factory=lambda: places.PLACES)
    layers: str = "model.layers"
    outer: Mapping[str, str] = field(default_factory=lambda: places.OUTER)


QKV, MLP = ("query", "key", "value"), ("gate", "up", "down")
ATTENTION = (*QKV, "out")
LAYER_NORM = {"norm": "layer", "norm_biases": True}
PLAIN_MLP = {"gated": False}
AFTER = ("attention_post_norm", "mlp_post_norm")
SANDWICH = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
ACT, EPS = {"hidden_activation": "hidden_act"}, {"layer_norm_eps": "rms_norm_eps"}
GPT_SIZES = {
    **{"n_positions": "max_position_embeddings", "n_embd": "hidden_size", "n_layer": "num_hidden_layers"},
    **{"n_head": "num_attention_heads", "n_inner": "intermediate_size", "activation_function": "hidden_act"},
    "layer_norm_epsilon": "rms_norm_eps",
}
COUNTS = {"num_local_experts": "num_experts"}
EXPERTS = ("num_experts", "num_experts_per_tok")
BIASED = {"attention_bias": {"biases": ATTENTION}}
BIASED_QKV = {"attention_bias": {"biases": QKV}}
BIASED_ALL = {**BIASED, "mlp_bias": {"biases": MLP}}
MULTIPLIERS = {
    **{"embedding_multiplier": "embed_scale", "residual_multiplier": "residual_scale"},
    "attention_multiplier": "attention_scale",
}
SOFTCAPS = {"attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "logits_softcap"}
QWEN_WINDOW = ("use_sliding_window", "max_window_layers")
SPARSE = {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}


# What Microsoft's files name as their code: the classes that transformers has had since.
PHI3_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}


def _gemma(full: Settings) -> Settings:
    scale = full.get("query_pre_attn_scalar")
    return {"embed_scale": full["hidden_size"] ** 0.5, "attention_scale": None if scale is None else scale**-0.5}


def _experts(full: Settings, **features: Any) -> Settings:
    hidden = full.get("moe_intermediate_size") or full["intermediate_size"]
    return {"hidden": hidden, "experts": Experts(full["num_experts"], full["num_experts_per_tok"], **features)}


def _qwen_experts(full: Settings) -> Settings:
    shared = full.get("shared_expert_intermediate_size") or 0
    return _experts(full, normed=full["norm_topk_prob"], shared=shared, shared_gate=bool(shared))


def _chosen_experts(full: Settings) -> Settings:
    return _experts(full, among_chosen=True)


def _granite(full: Settings) -> Settings:
    return {"logits_scale": 1 / full["logits_scaling"], **(_chosen_experts(full) if "num_experts" in full else {})}


def _gpt_oss(full: Settings) -> Settings:
    limit, slope = full.get("swiglu_limit", 7.0), full.get("swiglu_alpha", 1.702)
    return {**_chosen_experts(full), "gate_limit": limit, "gate_slope": slope}


def _rotated_where_sliding(full: Settings) -> Settings:
    if full.get("sliding_window") is None:
        return {}
    return {"rotated": tuple(kind == "sliding_attention" for kind in full["layer_types"])}


def _smollm3(full: Settings) -> Settings:
    return {"rotated": tuple(bool(one) for one in full["no_rope_layers"])}


def _stablelm(full: Settings) -> Settings:
    norms = ("attention_norm",) if full["use_parallel_residual"] else ("attention_norm", "mlp_norm")
    return {"parallel": full["use_parallel_residual"], "norms": norms}


def _gpt2(full: Settings) -> Settings:
    scale = None if full["scale_attn_weights"] else 1.0
    return {"rope": None, "positions": full["max_position_embeddings"], "attention_scale": scale}


def _gptj(full: Settings) -> Settings:
    head_width = full["hidden_size"] // full["num_attention_heads"]
    return {"rope": Rope(share=full["rotary_dim"] / head_width, neighbours=True)}


def _olmo3(full: Settings) -> Settings:
    given = full["rope_parameters"]  # versions of transformers before 5.2 scale sliding layers as well, OLMo does not
    return {"sliding_rope": Rope(given["rope_theta"])} if "rope_theta" in given else {}


GEMMA = {"norm_offset": 1.0}
LLAMA = Family("Llama 2 and 3, TinyLlama, SmolLM2", switches=BIASED_ALL)
QWEN2 = Family("Qwen2 and Qwen2.5", fixed={"biases": QKV}, windows="layer_types", reads=QWEN_WINDOW)
NEIGHBOURS = {"neighbours": True}

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": Family("Mistral 7B, Small, Nemo", windows="all"),
    "ministral": Family("Ministral 8B", windows="layer_types"),
    "ministral3": Family("Ministral 3", windows="all", rotary=("llama_4_scaling_beta",)),
    "qwen2": QWEN2,
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
    "olmo": Family(
        "OLMo",
        fixed={"norm": "layer", "norm_scales": False, "epsilon": 1e-5},
        numbers={"clip_qkv": "clip"},
        switches=BIASED,
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
    "granite": Family("Granite 3", numbers=MULTIPLIERS, switches=BIASED_ALL, more=_granite, reads=("logits_scaling",)),
    "stablelm": Family(
        "StableLM 2",
        fixed=LAYER_NORM,
        switches={"use_qkv_bias": {"biases": QKV}, "qk_layernorm": {"query_key_norm": "heads"}},
        sizes=EPS,
        more=_stablelm,
        reads=("use_parallel_residual", "partial_rotary_factor"),
        places=places.PLACES | places.HEAD_NORMS,
    ),
    "seed_oss": Family(
        "Seed-OSS",
        switches={**BIASED_QKV, "attention_out_bias": {"biases": ("out",)}, "mlp_bias": {"biases": MLP}},
    ),
    "ernie4_5": Family("Ernie 4.5", fixed=NEIGHBOURS, switches={"use_bias": {"biases": (*ATTENTION, *MLP)}}),
    "exaone4": Family(
        "EXAONE 4",
        fixed={"norms": AFTER, "query_key_norm": "head"},
        windows="layer_types",
        more=_rotated_where_sliding,
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
    "arcee": Family("Arcee", fixed=PLAIN_MLP, switches={**BIASED, "mlp_bias": {"biases": ("up", "down")}}),
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
        more=_rotated_where_sliding,
        reads=("sliding_window_pattern",),
    ),
    "helium": Family("Helium", fixed=NEIGHBOURS, switches={**BIASED_QKV, "mlp_bias": {"biases": MLP}}),
    "hunyuan_v1_dense": Family(
        "Hunyuan",
        fixed={"query_key_norm": "head", "norm_rotated": True},
        switches=BIASED,
        places=places.PLACES | places.HUNYUAN,
    ),
    "qwen2_moe": Family(
        "Qwen1.5-MoE and Qwen2-57B-A14B",
        switches={"qkv_bias": {"biases": QKV}},
        sizes=COUNTS,
        windows="layer_types",
        more=_qwen_experts,
        reads=(*QWEN_WINDOW, *EXPERTS, "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob"),
        only=SPARSE,
        places=places.PLACES | places.EXPERTS | places.SHARED,
    ),
    "qwen3_moe": Family(
        "Qwen3-30B-A3B and the like",
        fixed={"query_key_norm": "head"},
        switches=BIASED,
        sizes=COUNTS,
        windows="all",
        more=_qwen_experts,
        reads=(*QWEN_WINDOW, *EXPERTS, "moe_intermediate_size", "norm_topk_prob"),
        only=SPARSE,
        places=places.PLACES | places.EXPERTS,
    ),
    "olmoe": Family(
        "OLMoE",
        fixed={"query_key_norm": "width"},
        numbers={"clip_qkv": "clip"},
        switches=BIASED,
        sizes=COUNTS,
        more=_qwen_experts,
        reads=(*EXPERTS, "norm_topk_prob"),
        places=places.PLACES | places.EXPERTS,
    ),
    "mixtral": Family(
        "Mixtral",
        sizes=COUNTS,
        windows="all",
        more=_chosen_experts,
        reads=EXPERTS,
        places=places.PLACES | places.MIXTRAL,
    ),
    "gpt_oss": Family(
        "GPT-OSS",
        fixed={"sinks": True, "biases": ("router", *MLP)},
        switches=BIASED,
        sizes=COUNTS,
        windows="layer_types",
        more=_gpt_oss,
        reads=(*EXPERTS, "swiglu_limit", "swiglu_alpha", "experts_per_token", "initial_context_length"),
        places=places.PLACES | places.OSS,
    ),
    "granitemoe": Family(
        "Granite 3 with experts",
        numbers=MULTIPLIERS,
        switches=BIASED,
        sizes=COUNTS,
        more=_granite,
        reads=("logits_scaling", *EXPERTS),
        places=places.PLACES | places.GRANITE,
    ),
}
