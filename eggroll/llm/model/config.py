"""What a decoder needs to know of a Hugging Face configuration, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from eggroll.llm.model.accepted import refuse_what_is_not_accepted, refuse_what_rotary_positions_lack
from eggroll.llm.model.files import silent, transformers
from eggroll.training.errors import RunError

__all__ = ["MOST_LAYERS", "DecoderConfig", "Rope", "check_count", "config_from"]

MOST_LAYERS = 4096  # where there are no weights to say it
MOST = 2**31 - 1  # of any other size: what an index in JAX can count

ARCHITECTURES = {
    "llama": "Llama 2 and 3, TinyLlama, SmolLM2",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3",
    "gemma3_text": "Gemma 3, text only",
}
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
ROPES = ("default", "linear", "llama3")
LAYER_TYPES = {"full_attention", "sliding_attention"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Raises `RunError` unless the value is a whole number from 1 to `most`; None is the most that there can be."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= (most or MOST):
        raise RunError(f"got {name}={value!r}; a whole number from 1 to {most or MOST} is required.")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise RunError(f"got {name}={value!r}; a finite number above 0 is required.")


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the wavelengths of a head's features.

    Args:
        theta: base of the wavelengths.
        kind: `"default"`; `"linear"`: all frequencies divided by `factor`; `"llama3"`: the low ones divided, the high
            ones kept, those between `low` and `high` interpolated.
        factor: by how much longer texts may be than those of the first training.
        low: of `"llama3"`: `original`/low is the wavelength, in tokens, from which on all is divided.
        high: of `"llama3"`: `original`/high is the wavelength up to which nothing is.
        original: of `"llama3"`: tokens of the first training's texts.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self) -> None:
        for name in ("theta", "factor", "low", "high", "original"):
            _check_positive(f"{name} of rotary positions", getattr(self, name))
        if self.kind == "llama3" and not self.low < self.high:
            raise RunError(f"got low_freq_factor={self.low} and high_freq_factor={self.high}; the first must be less.")


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder; `config_from` makes it from a Hugging Face configuration.

    Args:
        vocabulary: tokens that the embedding knows.
        width: features of the residual stream.
        hidden: features inside the gated MLP.
        layers: number of layers.
        heads: query heads.
        key_value_heads: heads of keys and values; each serves `heads / key_value_heads` query heads.
        head_width: features of a head; `heads · head_width` need not be `width`.
        context: longest text, in tokens, that the model was made for.
        epsilon: added to the mean square in RMS norms.
        rope: rotary positions.
        tied: True if the embedding is the output matrix too.
        activation: of the MLP's gate: "silu", "gelu" or "gelu_pytorch_tanh".
        biases: True if queries, keys and values have biases (Qwen 2).
        head_norms: True if queries and keys are normed per head (Qwen 3, Gemma 3).
        gemma: True for Gemma's ways: norms that scale by 1 + weight, norms after attention and MLP as well as before,
            embeddings times √width.
        attention_scale: what scores are multiplied by; None is `head_width ** -0.5`.
        sliding: for each layer, True if it sees no more than the last `window` tokens; empty: none does.
        window: tokens that a sliding layer sees, itself included.
        sliding_rope: rotary positions of the sliding layers, if others than `rope`.

    Example:
        >>> from eggroll.llm.model.config import DecoderConfig
        >>> DecoderConfig(vocabulary=64, width=16, hidden=32, layers=2, heads=4, key_value_heads=2, head_width=4).tied
        True
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    context: int = 2048
    epsilon: float = 1e-6
    rope: Rope = Rope()
    tied: bool = True
    activation: str = "silu"
    biases: bool = False
    head_norms: bool = False
    gemma: bool = False
    attention_scale: float | None = None
    sliding: tuple[bool, ...] = ()
    window: int | None = None
    sliding_rope: Rope | None = None

    def __post_init__(self) -> None:
        sizes = ("vocabulary", "width", "hidden", "layers", "heads", "head_width", "context")
        for name in sizes if self.window is None else (*sizes, "window"):
            check_count(f"{name} of a decoder", getattr(self, name))
        for name in ("epsilon",) if self.attention_scale is None else ("epsilon", "attention_scale"):
            _check_positive(name, getattr(self, name))
        if not isinstance(self.tied, bool):
            raise RunError(f"got tie_word_embeddings={self.tied!r}; true or false is required.")
        if len(self.sliding) not in (0, self.layers):
            raise RunError(
                f"got {len(self.sliding)} layer_types; one for each of the {self.layers} layers is required."
            )
        if not isinstance(self.key_value_heads, int) or self.key_value_heads < 1 or self.heads % self.key_value_heads:
            raise RunError(
                f"got {self.heads} query heads and {self.key_value_heads} heads of keys and values; the first must be "
                "a multiple of the second: correct num_attention_heads or num_key_value_heads in config.json."
            )
        if self.head_width % 2:
            raise RunError(f"got heads of {self.head_width} features; rotary positions need an even number.")


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
    if (layers := hf.get("num_hidden_layers")) is not None:
        check_count("num_hidden_layers", layers, most_layers)
    try:
        return _config(hf, _with_defaults(hf))
    except RunError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise RunError(
            f"the configuration has values of other kinds than its architecture takes ({error!r}); fetch or copy "
            "config.json again."
        ) from error


def _config(hf: Mapping[str, Any], full: Mapping[str, Any]) -> DecoderConfig:
    _refuse_what_is_lacking(hf, full)
    gemma = full["model_type"] == "gemma3_text"
    for name in SIZES if full.get("head_dim") is None else (*SIZES, "head_dim"):
        check_count(name, full[name])
    if gemma:
        _check_positive("query_pre_attn_scalar", full["query_pre_attn_scalar"])
    head_width = full.get("head_dim")
    types = full.get("layer_types") or ()
    window = full.get("sliding_window")
    sliding = tuple(kind == "sliding_attention" and window is not None for kind in types)
    ropes = _ropes(full)
    return DecoderConfig(
        vocabulary=full["vocab_size"],
        width=full["hidden_size"],
        hidden=full["intermediate_size"],
        layers=full["num_hidden_layers"],
        heads=full["num_attention_heads"],
        key_value_heads=full["num_key_value_heads"],
        head_width=full["hidden_size"] // full["num_attention_heads"] if head_width is None else head_width,
        context=full["max_position_embeddings"],
        epsilon=full["rms_norm_eps"],
        rope=ropes.get("full_attention", ropes.get("")) or Rope(),
        tied=full["tie_word_embeddings"],
        activation=_activation(full),
        biases=full["model_type"] == "qwen2",
        head_norms=full["model_type"] in ("qwen3", "gemma3_text"),
        gemma=gemma,
        attention_scale=full["query_pre_attn_scalar"] ** -0.5 if gemma else None,
        sliding=sliding if any(sliding) else (),
        window=window if any(sliding) else None,
        sliding_rope=ropes.get("sliding_attention"),
    )


def _with_defaults(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as transformers completes it: each architecture has defaults and older spellings of its own."""
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = "; ".join(f"{name} ({what})" for name, what in ARCHITECTURES.items())
        hint = " Of gemma3, which has a vision part, only checkpoints of the text part are read." * (kind == "gemma3")
        raise RunError(f"got a model of the architecture {kind!r}; known are: {known}. Choose one of these.{hint}")
    # Some versions of transformers write into what they are given.
    rest = {name: deepcopy(value) for name, value in hf.items() if name != "model_type"}
    library = transformers()  # not within: what is missing has an error of its own
    try:
        with silent():
            return library.AutoConfig.for_model(kind, **rest).to_dict()
    except Exception as error:  # transformers checks types and values with errors of several classes
        raise RunError(f"transformers does not accept the configuration of this {kind} model: {error}") from error


def _refuse_what_is_lacking(hf: Mapping[str, Any], full: Mapping[str, Any]) -> None:
    refuse_what_is_not_accepted(hf, full)
    heads = [name for name in hf.get("architectures") or () if not name.endswith("ForCausalLM")]
    if heads:
        raise RunError(f"got a model of the class {heads[0]}; a language model (…ForCausalLM) is required.")
    unknown = set(full.get("layer_types") or ()) - LAYER_TYPES
    if unknown:
        raise RunError(f"got layer_types {sorted(unknown)}; known are full_attention and sliding_attention.")


def _activation(full: Mapping[str, Any]) -> str:
    name = full["hidden_activation" if full["model_type"] == "gemma3_text" else "hidden_act"]
    if name not in ACTIVATIONS:
        raise RunError(f"got the activation {name!r}; known are {', '.join(ACTIVATIONS)}.")
    return str(name)


def _ropes(full: Mapping[str, Any]) -> dict[str, Rope]:
    """Rotary positions by type of layer; under "" those of all layers."""
    given = full.get("rope_parameters") or {}
    types = {name: value for name, value in given.items() if isinstance(value, Mapping)}
    if types:
        # transformers itself puts these two beside the types of layers where the model has not all of them.
        beside = {"rope_type": "default", "rope_theta": None}
        rest = {name: value for name, value in given.items() if name not in beside or value != beside[name]}
        refuse_what_rotary_positions_lack(rest, full["model_type"], LAYER_TYPES)
        return {name: _rope(value, full["model_type"]) for name, value in types.items()}
    return {"": _rope(given, full["model_type"])}


def _rope(given: Mapping[str, Any], model: str) -> Rope:
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ROPES:
        raise RunError(
            f"got rotary positions of the type {kind!r}; known are {', '.join(ROPES)}. Choose another model."
        )
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise RunError(
            f"got partial_rotary_factor={given['partial_rotary_factor']}; the decoder rotates whole heads, so 1.0."
        )
    refuse_what_rotary_positions_lack(given, model)
    theta = _number(given, "rope_theta") if given.get("rope_theta") is not None else Rope.theta
    if kind == "default":
        lost = {name: given[name] for name in ("type", "factor") if given.get(name) not in (None, "default", 1)}
        if lost:  # an older spelling that transformers does not read for this model, or no type
            raise RunError(
                f"got {lost} in a description of rotary positions whose rope_type is 'default', which reads none; "
                "name what is meant as rope_type (linear, llama3), or take it out."
            )
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, _number(given, "factor"))
    low, high = _number(given, "low_freq_factor"), _number(given, "high_freq_factor")
    return Rope(
        theta, kind, _number(given, "factor"), low, high, int(_number(given, "original_max_position_embeddings"))
    )


def _number(given: Mapping[str, Any], name: str) -> float:
    """A number of rotary positions."""
    _check_positive(f"{name} in the description of rotary positions", given.get(name))
    return float(given[name])
