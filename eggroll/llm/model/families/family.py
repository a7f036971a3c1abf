"""What is read of a family of decoders, as tables; and what several families have alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eggroll.llm.model.families import places
from eggroll.llm.model.features import Experts

__all__ = ["Family", "Settings"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What is read of one `model_type`.

    Attributes:
        about: its models.
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
NEIGHBOURS = {"neighbours": True}


def experts(full: Settings, **features: Any) -> Settings:
    hidden = full.get("moe_intermediate_size") or full["intermediate_size"]
    return {"hidden": hidden, "experts": Experts(full["num_experts"], full["num_experts_per_tok"], **features)}


def chosen_experts(full: Settings) -> Settings:
    return experts(full, among_chosen=True)


def granite(full: Settings) -> Settings:
    return {"logits_scale": 1 / full["logits_scaling"], **(chosen_experts(full) if "num_experts" in full else {})}
