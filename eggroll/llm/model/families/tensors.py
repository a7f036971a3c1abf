"""Where the decoder's weights lie in the tensors of a checkpoint, both ways: some hold several, or a transpose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eggroll.llm.model.families.places import Place
from eggroll.llm.model.families.table import FAMILIES
from eggroll.llm.model.features import DecoderConfig
from eggroll.llm.model.parts.shapes import layer_shapes, outer_shapes

__all__ = ["Stored", "stored"]


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint.

    Attributes:
        name: of the tensor.
        weights: of the decoder that lie in it, in this order.
        index: the layer, and the expert or head, whose parts of the weights these are; empty outside the layers.
        shapes: of these parts.
        place: how they lie.
    """

    name: str
    weights: tuple[str, ...]
    index: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    place: Place

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        *rest, _ = self.shapes[0]
        whole = (*rest, sum(shape[-1] for shape in self.shapes))
        return (*whole[:-2], whole[-1], whole[-2]) if self._turned else whole

    @property
    def _turned(self) -> bool:
        return self.place.turned and len(self.shapes[0]) > 1

    def parts(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The weights in a tensor, matrices as `[inputs, outputs]`."""
        whole = np.swapaxes(tensor, -1, -2) if self._turned else tensor
        if self.place.block is None:
            return np.split(whole, np.cumsum([shape[-1] for shape in self.shapes])[:-1], axis=-1)
        grouped = whole.reshape(*whole.shape[:-1], -1, len(self.weights), self._block)
        return [grouped[..., i, :].reshape(shape) for i, shape in enumerate(self.shapes)]

    def tensor(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor that holds these weights."""
        if self.place.block is None:
            whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        else:
            grouped = [part.reshape(*part.shape[:-1], -1, 1, self._block) for part in parts]
            whole = np.concatenate(grouped, axis=-2).reshape(*parts[0].shape[:-1], -1)
        return np.swapaxes(whole, -1, -2) if self._turned else whole

    @property
    def _block(self) -> int:
        """Features of a weight that lie together, where the weights take turns."""
        return self.place.block or 1


def stored(config: DecoderConfig) -> Iterator[Stored]:
    """The tensors of a checkpoint, in the order of the decoder's weights.

    Example:
        >>> from eggroll.llm.model.config import DecoderConfig
        >>> from eggroll.llm.model.families.tensors import stored
        >>> config = DecoderConfig(64, 16, 32, layers=1, heads=4, key_value_heads=2, head_width=4, family="phi3")
        >>> next((one.weights, one.shape) for one in stored(config) if "qkv_proj" in one.name)
        (('query', 'key', 'value'), (32, 16))
    """
    family = FAMILIES[config.family]
    for name, shape in outer_shapes(config).items():
        yield Stored(family.outer[name], (name,), (), (shape,), Place("", turned=name == "head"))
    shapes = layer_shapes(config)
    done: set[str] = set()
    for name in shapes:
        if name not in done:
            place, together, kind = _placed(family.places, name, shapes)
            done |= set(together)
            yield from _of_layers(config, family.layers, place, together, kind, shapes)


def _placed(places: Mapping[Any, Place], name: str, shapes: Mapping[str, Any]) -> tuple[Place, tuple[str, ...], int]:
    """Of a weight: its place, the weights that lie there, and 0 or, of a bias, 1."""
    stem = name.removesuffix("_bias")
    kind = int(stem != name)
    for key, place in reversed(tuple(places.items())):  # what a family adds comes before what all have
        stems = (key,) if isinstance(key, str) else key
        if stem in stems:
            return place, tuple(f"{one}_bias" if kind else one for one in stems), kind
    raise KeyError(name)


def _of_layers(
    config: DecoderConfig, prefix: str, place: Place, weights: tuple[str, ...], kind: int, shapes: Mapping[str, Any]
) -> Iterator[Stored]:
    own = tuple(shapes[name] for name in weights)
    if place.block == 0:
        place = place.with_block(config.head_width)
    for layer in range(config.layers):
        name = f"{prefix}.{layer}.{place.name}{place.ends[kind]}"
        if "{}" not in place.name:
            yield Stored(name, weights, (layer,), own, place)
            continue
        rest = tuple(shape[1:] for shape in own)
        for i in range(own[0][0]):
            yield Stored(name.format(i), weights, (layer, i), rest, place)
