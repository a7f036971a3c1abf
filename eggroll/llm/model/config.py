"""What a Hugging Face configuration says of a decoder's features, and what of it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from eggroll.llm.model.families.accepted import refuse_what_is_not_accepted
from eggroll.llm.model.families.ropes import ropes_of
from eggroll.llm.model.families.table import FAMILIES, Family
from eggroll.llm.model.features import DecoderConfig, Experts, Rope, check_count, check_positive
from eggroll.llm.model.files import silent, transformers
from eggroll.training.errors import RunError

__all__ = [
    "ARCHITECTURES",
    "MOST_LAYERS",
    "DecoderConfig",
    "Experts",
    "Rope",
    "check_count",
    "config_from",
    "text_part",
]

MOST_LAYERS = 4096  # where there are no weights to say it

ARCHITECTURES = {name: family.about for name, family in FAMILIES.items()}
# What has a part that reads pictures: only the text's is read, and what is written is a model of text alone.
WRAPPERS = {"gemma3": "gemma3_text", "mistral3": "mistral"}
TEXT_CLASSES = {
    "gemma3_text": "Gemma3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
}
WRAPPING = {
    *("architectures", "model_type", "text_config", "vision_config", "image_token_index", "image_token_id"),
    *("boi_token_index", "eoi_token_index", "mm_tokens_per_image", "projector_hidden_act", "vision_feature_layer"),
    *("multimodal_projector_bias", "spatial_merge_size"),
}
# Names in configurations of what is computed alike.
ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "swish": "silu"}
LAYER_TYPES = {"full_attention", "sliding_attention"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")


def text_part(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the text's part, of a model that has one for pictures, too; any other as it is."""
    inner, default = hf.get("text_config"), WRAPPERS.get(str(hf.get("model_type")))
    if default is None or not isinstance(inner, Mapping):
        return dict(hf)
    kind = inner.get("model_type", default)
    outer = {name: value for name, value in hf.items() if name not in WRAPPING}
    named = {"architectures": [TEXT_CLASSES[kind]]} if kind in TEXT_CLASSES else {}
    return {**inner, **outer, "model_type": kind, **named}


def config_from(hf: Mapping[str, Any], *, most_layers: int = MOST_LAYERS) -> DecoderConfig:
    """Reads a Hugging Face configuration, in the style of transformers 4 or 5, with the defaults of its architecture.

    Args:
        hf: the contents of `config.json`.
        most_layers: that there can be, such as the number of the weights' tensors: lists are as long as there are
            layers. Default 4096.

    Returns:
        The decoder's configuration.

    Raises:
        RunError: an architecture that the decoder does not know, a setting that it lacks or does not know, or a number
            that none can have, by name.

    Example:
        >>> from eggroll.llm.model.config import config_from
        >>> config = config_from({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
        >>> config.head_width, config.key_value_heads, config.rope.theta
        (16, 4, 10000.0)
    """
    try:
        hf = text_part(hf)
        family = _family(hf)
        usual = {theirs: ours for theirs, ours in family.sizes.items() if ours == "num_hidden_layers"}
        for name in ("num_hidden_layers", *usual):
            if (layers := hf.get(name)) is not None:
                check_count(name, layers, most_layers)
        full = _with_defaults(hf)
        refuse_what_is_not_accepted(hf, full, family)
        _refuse_classes_and_layers(hf, full)
        return _config({family.sizes.get(name, name): value for name, value in full.items()}, family)
    except RunError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise RunError(
            f"the configuration has values of other kinds than its architecture takes ({error!r}); fetch or copy "
            "config.json again."
        ) from error


def _family(hf: Mapping[str, Any]) -> Family:
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(ARCHITECTURES)
        hint = " Of this one the part for text is read, by its text_config." * (kind in WRAPPERS)
        raise RunError(f"got a model of the architecture {kind!r}; known are: {known}. Choose one of these.{hint}")
    return FAMILIES[kind]


def _config(full: dict[str, Any], family: Family) -> DecoderConfig:
    """The features that the tables name, from settings by their usual names."""
    full["intermediate_size"] = full.get("intermediate_size") or 4 * full["hidden_size"]
    for name in SIZES if full.get("head_dim") is None else (*SIZES, "head_dim"):
        check_count(name, full[name])
    heads, head_width = full["num_attention_heads"], full.get("head_dim")
    features = {
        "vocabulary": full["vocab_size"],
        "width": full["hidden_size"],
        "hidden": full["intermediate_size"],
        "layers": full["num_hidden_layers"],
        "heads": heads,
        "key_value_heads": heads if full.get("num_key_value_heads") is None else full["num_key_value_heads"],
        "head_width": full["hidden_size"] // heads if head_width is None else head_width,
        "context": full["max_position_embeddings"],
        "epsilon": full.get("rms_norm_eps"),
        "tied": full["tie_word_embeddings"],
        "activation": _activation(full),
        "family": full["model_type"],
        **_windows(full, family),
        **ropes_of(full, family),
        **{name: value for name, value in family.fixed.items() if name != "neighbours"},
        **{ours: full[theirs] for theirs, ours in family.numbers.items() if theirs in full},
    }
    for name, on in family.switches.items():
        if not isinstance(full.get(name), bool | None):
            raise RunError(f"got {name}={full[name]!r}; true or false is required.")
        if full.get(name):
            biases = (*features.get("biases", ()), *on.get("biases", ()))
            features |= {**on, "biases": biases}
    if "query_pre_attn_scalar" in full:
        check_positive("query_pre_attn_scalar", full["query_pre_attn_scalar"])
    return DecoderConfig(**(features | dict(family.more(full) if family.more else {})))


def _with_defaults(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as transformers completes it: each architecture has defaults and older spellings of its own."""
    kind = hf["model_type"]
    # Some versions of transformers write into what they are given.
    rest = {name: deepcopy(value) for name, value in hf.items() if name != "model_type"}
    library = transformers()  # not within: what is missing has an error of its own
    try:
        with silent():
            return library.AutoConfig.for_model(kind, **rest).to_dict()
    except Exception as error:  # transformers checks types and values with errors of several classes
        raise RunError(f"transformers does not accept the configuration of this {kind} model: {error}") from error


def _refuse_classes_and_layers(hf: Mapping[str, Any], full: Mapping[str, Any]) -> None:
    heads = [name for name in hf.get("architectures") or () if not name.endswith(("ForCausalLM", "LMHeadModel"))]
    if heads:
        raise RunError(f"got a model of the class {heads[0]}; a language model (…ForCausalLM) is required.")
    unknown = set(full.get("layer_types") or ()) - LAYER_TYPES
    if unknown:
        raise RunError(f"got layer_types {sorted(unknown)}; known are full_attention and sliding_attention.")


def _activation(full: Mapping[str, Any]) -> str:
    from eggroll.llm.model.features import ONE_OF

    known = {name: name for name in ONE_OF["activation"]} | ACTIVATIONS
    name = full["hidden_act"]
    if name not in known:
        raise RunError(f"got the activation {name!r}; known are {', '.join(known)}.")
    return known[name]


def _windows(full: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Which layers see how far."""
    window = full.get("sliding_window")
    if not family.windows or window is None or full.get("use_sliding_window") is False:
        return {}
    everywhere = ("sliding_attention",) * full["num_hidden_layers"]
    types = everywhere if family.windows == "all" else full.get("layer_types") or ()
    sliding = tuple(kind == "sliding_attention" for kind in types)
    return {"sliding": sliding, "window": window} if any(sliding) else {}
