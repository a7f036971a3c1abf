"""Families with a mixture of experts in place of the MLP."""

from __future__ import annotations

from eggroll.llm.model.families import places
from eggroll.llm.model.families.family import (
    BIASED,
    COUNTS,
    EXPERTS,
    MLP,
    MULTIPLIERS,
    QKV,
    QWEN_WINDOW,
    SPARSE,
    Family,
    Settings,
    chosen_experts,
    experts,
    granite,
)

__all__ = ["FAMILIES"]


def _qwen_experts(full: Settings) -> Settings:
    shared = full.get("shared_expert_intermediate_size") or 0
    return experts(full, normed=full["norm_topk_prob"], shared=shared, shared_gate=bool(shared))


def _gpt_oss(full: Settings) -> Settings:
    limit, slope = full.get("swiglu_limit", 7.0), full.get("swiglu_alpha", 1.702)
    return {**chosen_experts(full), "gate_limit": limit, "gate_slope": slope}


FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        "Mixtral",
        sizes=COUNTS,
        windows="all",
        more=chosen_experts,
        reads=EXPERTS,
        places=places.PLACES | places.MIXTRAL,
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
        more=granite,
        reads=("logits_scaling", *EXPERTS),
        places=places.PLACES | places.GRANITE,
    ),
}
