"""Which weights a decoder has, in which shapes, and what they are before any training."""

from __future__ import annotations

from eggroll.llm.model.features import DecoderConfig

__all__ = ["adapter_shapes", "layer_shapes", "outer_shapes", "starts_at"]

Shape = tuple[int, ...]


def layer_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """The weights of a layer by name; a matrix is `[inputs, outputs]`, of experts `[experts, inputs, outputs]`.

    Example:
        >>> from eggroll.llm.model.config import DecoderConfig
        >>> from eggroll.llm.model.parts.shapes import layer_shapes
        >>> config = DecoderConfig(64, 16, 32, layers=2, heads=4, key_value_heads=2, head_width=4)
        >>> layer_shapes(config)["key"]
        (16, 8)
    """
    width = config.width
    inner, shared = config.heads * config.head_width, config.key_value_heads * config.head_width
    norms = {name: (width,) for name in config.norms if config.norm_scales}
    matrices = {"query": (width, inner), "key": (width, shared), "value": (width, shared), "out": (inner, width)}
    matrices |= _mlp_shapes(config)
    biases = {f"{name}_bias": (*shape[:-2], shape[-1]) for name, shape in matrices.items() if name in config.biases}
    shapes: dict[str, Shape] = {**norms, **matrices, **biases}
    if config.norm_biases:
        shapes |= {f"{name}_bias": shape for name, shape in norms.items()}
    if config.query_key_norm and config.norm_scales:
        shapes |= {"query_norm": _scales(config, config.heads), "key_norm": _scales(config, config.key_value_heads)}
    if config.sinks:
        shapes["sinks"] = (config.heads,)
    return shapes


def adapter_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """The factors of a layer's adapters by name: `NAME_lora_a [inputs, rank]` and `NAME_lora_b [rank, outputs]`."""
    shapes: dict[str, Shape] = {}
    if config.lora is not None:
        own, rank = layer_shapes(config), config.lora.rank
        for name in config.lora.targets:
            inputs, outputs = own[name]
            shapes |= {f"{name}_lora_a": (inputs, rank), f"{name}_lora_b": (rank, outputs)}
    return shapes


def _mlp_shapes(config: DecoderConfig) -> dict[str, Shape]:
    names = ("gate", "up", "down") if config.gated else ("up", "down")

    def of(hidden: int, first: Shape = ()) -> dict[str, Shape]:
        return {
            name: (*first, *((hidden, config.width) if name == "down" else (config.width, hidden))) for name in names
        }

    experts = config.experts
    if experts is None:
        return of(config.hidden)
    shapes = {"router": (config.width, experts.count), **of(config.hidden, (experts.count,))}
    if experts.shared:
        shapes |= {f"shared_{name}": shape for name, shape in of(experts.shared).items()}
    if experts.shared_gate:
        shapes["shared_router"] = (config.width, 1)
    return shapes


def _scales(config: DecoderConfig, heads: int) -> Shape:
    """The scales of the norm of queries or keys."""
    by_kind = {"head": (config.head_width,), "heads": (heads, config.head_width), "width": (heads * config.head_width,)}
    return by_kind[config.query_key_norm]


def outer_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """The weights outside the layers by name."""
    shapes: dict[str, Shape] = {"embed": (config.vocabulary, config.width)}
    if config.norm_scales:
        shapes["norm"] = (config.width,)
    if config.norm_scales and config.norm_biases:
        shapes["norm_bias"] = (config.width,)
    if not config.tied:
        shapes["head"] = (config.width, config.vocabulary)
    if "head" in config.biases:
        shapes["head_bias"] = (config.vocabulary,)
    if config.positions:
        shapes["positions"] = (config.positions, config.width)
    return shapes


def starts_at(config: DecoderConfig, name: str) -> float | None:
    """The value that a weight has at first; None for a matrix, which is drawn."""
    if name.endswith(("bias", "_lora_b")) or name == "sinks":
        return 0.0
    return 1.0 - config.norm_offset if name.endswith("norm") else None
