"""Sizes and features of a decoder, whatever family has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eggroll.engine.checks import LARGEST, is_huge
from eggroll.training.errors import RunError

__all__ = ["DecoderConfig", "Experts", "Rope", "check_count", "check_positive"]

ONE_OF = {
    "norm": ("rms", "layer"),
    "query_key_norm": ("", "head", "heads", "width"),
    "activation": ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"),
}
NORMS = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")


def check_count(name: str, value: Any, most: int = LARGEST) -> None:
    """Raises `RunError` unless the value is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RunError(f"got {name}={value!r:.80}; a whole number from 1 to {most} is required.")


def check_positive(name: str, value: Any) -> None:
    """Raises `RunError` unless the value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or is_huge(value) or not 0 < value < float("inf"):
        raise RunError(f"got {name}={value!r:.80}; a finite number above 0 is required.")


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the wavelengths of a head's features.

    Args:
        theta: base of the wavelengths.
        kind: `"default"`; `"linear"`: all frequencies divided by `factor`; `"llama3"`: the low ones divided, the high
            ones kept, those between `low` and `high` interpolated; `"yarn"`: the same, interpolated by the feature's
            number; `"dynamic"`: the base grows with texts longer than `original`; `"longrope"`: divided by `short`, in
            texts longer than `original` by `long`.
        factor: by how much longer texts may be than those of the first training.
        low: of `"llama3"` and `"yarn"`: what turns no more than so often in `original` tokens is divided.
        high: of `"llama3"` and `"yarn"`: what turns at least so often is kept.
        original: tokens of the first training's texts.
        share: of a head's features that are rotated, the first ones.
        neighbours: True if features 2i and 2i + 1 are turned together; False: those half the rotated width apart.
        magnitude: what queries and keys are multiplied by beside.
        short: of `"longrope"`: what each frequency is divided by.
        long: of `"longrope"`: the same for long texts.
        whole: of `"yarn"`: True if the interpolation's bounds are rounded to whole numbers of features.
        growth: queries beyond `original` are multiplied by 1 + growth · ln(1 + ⌊position/original⌋).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    share: float = 1.0
    neighbours: bool = False
    magnitude: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    whole: bool = True
    growth: float = 0.0

    def __post_init__(self) -> None:
        for name in ("theta", "factor", "low", "high", "original", "share", "magnitude"):
            check_positive(f"{name} of rotary positions", getattr(self, name))
        if self.kind in ("llama3", "yarn") and not self.low < self.high:
            names = ("low_freq_factor", "high_freq_factor") if self.kind == "llama3" else ("beta_slow", "beta_fast")
            raise RunError(f"got {names[0]}={self.low} and {names[1]}={self.high}; the first must be less.")
        if self.share > 1:
            raise RunError(f"got partial_rotary_factor={self.share}; a number above 0, at most 1, is required.")

    def width(self, head_width: int) -> int:
        """How many features of a head are rotated."""
        return int(head_width * self.share + 1e-6)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP.

    Args:
        count: experts of a layer.
        chosen: how many of them read a token.
        among_chosen: True if a token's shares are a softmax over the chosen experts; False: over all.
        normed: True if shares of the chosen, from a softmax over all, are divided by their sum.
        shared: features inside one more expert that reads every token; 0: there is none.
        shared_gate: True if a sigmoid of the token weighs the shared expert.
    """

    count: int
    chosen: int
    among_chosen: bool = False
    normed: bool = False
    shared: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        check_count("experts of a layer", self.count)
        check_count("experts of a token", self.chosen, self.count)


@dataclass(frozen=True)
class Lora:
    """Adapters beside matrices of the layers, whose products become `x·W + scale·(x·A)·B`.

    Args:
        rank: columns of `A`, rows of `B`.
        scale: α/rank.
        targets: the weights of a layer that have them, such as `("query", "value")`.

    References:
        E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
    """

    rank: int
    scale: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        check_count("rank of adapters", self.rank)
        check_positive("scale of adapters", self.scale)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and features of a decoder; `config_from` makes it from a Hugging Face configuration.

    Args:
        vocabulary: tokens that the embedding knows.
        width: features of the residual stream.
        hidden: features inside the MLP, or inside an expert.
        layers: number of layers.
        heads: query heads.
        key_value_heads: heads of keys and values; each serves `heads / key_value_heads` query heads.
        head_width: features of a head; `heads · head_width` need not be `width`.
        context: longest text, in tokens, that the model was made for.
        epsilon: added to the mean square, or variance, in norms.
        rope: rotary positions; None: there are none.
        tied: True if the embedding is the output matrix too.
        activation: of the MLP: "silu", "gelu", "gelu_pytorch_tanh", "relu" or "relu2" (its square).
        gated: True if the activation of one product multiplies another; False: the MLP has only `up` and `down`.
        gate_limit: the gate is at most this, and the other within ± this and 1 is added to it (GPT-OSS).
        gate_slope: with `gate_limit`: the gate's activation is x · sigmoid(slope · x).
        biases: matrices that have a bias, such as `("query", "key", "value")`; "head" for the output matrix.
        query_key_norm: norms of queries and keys: "" none; "head": of each head, with one scale; "heads": of each head,
            with a scale of its own; "width": over all heads.
        norm_rotated: True if these come after the rotation.
        norms: of a layer: before and after attention and MLP. In a parallel layer without "mlp_norm" the MLP reads
            what attention does.
        norm: "rms", or "layer" with the mean taken off.
        norm_offset: added to norms' scales: 1.0 for those that are kept around 0.
        norm_scales: True if norms have scales.
        norm_biases: True if they have biases; those of queries and keys have none.
        parallel: True if MLP and attention read the same stream, and both are added to it.
        attention_scale: what scores are multiplied by; None is `head_width ** -0.5`.
        attention_softcap: scores `s` become `cap · tanh(s/cap)`; None: they are as they are.
        logits_softcap: the same of logits.
        embed_scale: what embeddings are multiplied by.
        residual_scale: what each part is multiplied by before it is added to the stream.
        logits_scale: what logits are multiplied by.
        clip: queries, keys and values are kept within ± this; None: they are as they are.
        sinks: True if each query head has a score for looking at nothing.
        sliding: for each layer, True if it sees no more than the last `window` tokens; empty: none does.
        window: tokens that a sliding layer sees, itself included.
        sliding_rope: rotary positions of the sliding layers, if others than `rope`.
        rotated: for each layer, True if it has rotary positions; empty: all have.
        positions: rows of a table of learned positions that is added to embeddings; 0: there is none.
        experts: in place of the MLP.
        lora: adapters beside matrices; None: there are none.
        family: `model_type` by whose names a checkpoint has the weights; it computes nothing.

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
    rope: Rope | None = Rope()
    tied: bool = True
    activation: str = "silu"
    gated: bool = True
    gate_limit: float | None = None
    gate_slope: float = 1.0
    biases: tuple[str, ...] = ()
    query_key_norm: str = ""
    norm_rotated: bool = False
    norms: tuple[str, ...] = ("attention_norm", "mlp_norm")
    norm: str = "rms"
    norm_offset: float = 0.0
    norm_scales: bool = True
    norm_biases: bool = False
    parallel: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    clip: float | None = None
    sinks: bool = False
    sliding: tuple[bool, ...] = ()
    window: int | None = None
    sliding_rope: Rope | None = None
    rotated: tuple[bool, ...] = ()
    positions: int = 0
    experts: Experts | None = None
    lora: Lora | None = None
    family: str = "llama"

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, known in ONE_OF.items():
            if getattr(self, name) not in known:
                raise RunError(f"got {name}={getattr(self, name)!r}; known are {', '.join(map(repr, known))}.")
        if unknown := set(self.norms) - set(NORMS):
            raise RunError(f"got norms {sorted(unknown)}; known are {', '.join(NORMS)}.")
        if not isinstance(self.tied, bool):
            raise RunError(f"got tie_word_embeddings={self.tied!r}; true or false is required.")
        for name, flags in {"layer_types": self.sliding, "flags for rotary positions": self.rotated}.items():
            if len(flags) not in (0, self.layers):
                raise RunError(f"got {len(flags)} {name}; one for each of the {self.layers} layers is required.")
        if not isinstance(self.key_value_heads, int) or self.key_value_heads < 1 or self.heads % self.key_value_heads:
            raise RunError(
                f"got {self.heads} query heads and {self.key_value_heads} heads of keys and values; the first must be "
                "a multiple of the second: correct num_attention_heads or num_key_value_heads in config.json."
            )
        for rope in filter(None, (self.rope, self.sliding_rope)):
            if rope.width(self.head_width) % 2 or not rope.width(self.head_width):
                raise RunError(
                    f"got heads of {self.head_width} features, {rope.width(self.head_width)} of them rotated; rotary "
                    "positions need an even number."
                )

    def _check_numbers(self) -> None:
        sizes = ("vocabulary", "width", "hidden", "layers", "heads", "head_width", "context")
        for name in sizes if self.window is None else (*sizes, "window"):
            check_count(f"{name} of a decoder", getattr(self, name))
        for name in ("epsilon", "embed_scale", "residual_scale", "logits_scale", "gate_slope"):
            check_positive(name, getattr(self, name))
        for name in ("attention_scale", "attention_softcap", "logits_softcap", "clip", "gate_limit"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
