"""Where each family's checkpoints have the decoder's weights: names of tensors, and what lies in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """Where weights of a layer lie.

    Attributes:
        name: of the tensor within its layer, without its end; `{}` is the number of an expert or head.
        turned: True if a matrix is `[outputs, inputs]` there.
        block: of several weights: None if one lies behind the other; otherwise so many features of each take turns, 0
            for a head's.
        ends: what ends the tensor's name, of a matrix or norm and of a bias.
    """

    name: str
    turned: bool = True
    block: int | None = None
    ends: tuple[str, str] = (".weight", ".bias")

    def with_block(self, block: int) -> Place:
        """The same with blocks of so many features."""
        return replace(self, block=block)


QKV, GATE_UP = ("query", "key", "value"), ("gate", "up")
ATTENTION = (*QKV, "out")
MLP = ("gate", "up", "down")

OUTER = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
OUTER |= {"norm_bias": "model.norm.bias", "head_bias": "lm_head.bias"}
NEOX_OUTER = {"embed": "gpt_neox.embed_in.weight", "head": "embed_out.weight"}
NEOX_OUTER |= {"norm": "gpt_neox.final_layer_norm.weight", "norm_bias": "gpt_neox.final_layer_norm.bias"}
GPT_OUTER = {"embed": "transformer.wte.weight", "positions": "transformer.wpe.weight", "head": "lm_head.weight"}
GPT_OUTER |= {"norm": "transformer.ln_f.weight", "norm_bias": "transformer.ln_f.bias", "head_bias": "lm_head.bias"}


def _places(**names: str) -> dict[Any, Place]:
    return {weight: Place(name, turned="norm" not in weight) for weight, name in names.items()}


PLACES: dict[Any, Place] = _places(
    **{short: f"self_attn.{short[0]}_proj" for short in ATTENTION},
    **{short: f"mlp.{short}_proj" for short in MLP},
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)
# Norms of layers that norm what a part gives: only that, or also what it is given.
AFTER = _places(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
SANDWICH = AFTER | _places(mlp_norm="pre_feedforward_layernorm")
HEAD_NORMS = _places(query_norm="self_attn.q_layernorm.norms.{}", key_norm="self_attn.k_layernorm.norms.{}")
HUNYUAN = _places(query_norm="self_attn.query_layernorm", key_norm="self_attn.key_layernorm")
PHI = _places(out="self_attn.dense", up="mlp.fc1", down="mlp.fc2")
PHI_OUTER = {"norm": "model.final_layernorm.weight", "norm_bias": "model.final_layernorm.bias"}
STARCODER = _places(up="mlp.c_fc", down="mlp.c_proj")
GLM4 = _places(attention_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm")
FUSED_GATE = {GATE_UP: Place("mlp.gate_up_proj")}
FUSED_QKV = {QKV: Place("self_attn.qkv_proj")}
EXPERTS = _places(router="mlp.gate", **{name: f"mlp.experts.{{}}.{name}_proj" for name in MLP})
SHARED = _places(shared_router="mlp.shared_expert_gate", **{f"shared_{n}": f"mlp.shared_expert.{n}_proj" for n in MLP})
MIXTRAL = _places(
    router="block_sparse_moe.gate",
    gate="block_sparse_moe.experts.{}.w1",
    up="block_sparse_moe.experts.{}.w3",
    down="block_sparse_moe.experts.{}.w2",
)
GRANITE = {
    "router": Place("block_sparse_moe.router.layer"),
    GATE_UP: Place("block_sparse_moe.input_linear"),
    "down": Place("block_sparse_moe.output_linear"),
}
BARE = ("", "_bias")
OSS = {
    "router": Place("mlp.router"),
    GATE_UP: Place("mlp.experts.gate_up_proj", turned=False, block=1, ends=BARE),
    "down": Place("mlp.experts.down_proj", turned=False, ends=BARE),
    "sinks": Place("self_attn.sinks", ends=BARE),
}
GPT2 = {
    QKV: Place("attn.c_attn", turned=False),
    "out": Place("attn.c_proj", turned=False),
    "up": Place("mlp.c_fc", turned=False),
    "down": Place("mlp.c_proj", turned=False),
    **_places(attention_norm="ln_1", mlp_norm="ln_2"),
}
NEOX = {
    QKV: Place("attention.query_key_value", block=0),
    **_places(out="attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
    **_places(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
}
GPTJ = {
    **{name: Place(f"attn.{name[0]}_proj") for name in QKV},
    **_places(out="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out", attention_norm="ln_1"),
}
