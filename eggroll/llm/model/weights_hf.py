"""Weights of a decoder in the safetensors files of a Hugging Face folder, both ways."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, for safetensors)
import numpy as np

from eggroll.llm.model.adapters import Adapter
from eggroll.llm.model.config import MOST_LAYERS, DecoderConfig
from eggroll.llm.model.families.table import FAMILIES
from eggroll.llm.model.families.tensors import stored
from eggroll.llm.model.files import check_file, inside, read_json
from eggroll.llm.model.parts.shapes import layer_shapes, outer_shapes
from eggroll.training.errors import RunError

__all__ = ["assemble", "check_shapes", "count_tensors", "read_folder", "write_file", "write_tensors"]

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# What a model's part for text has its names after, where there is one for pictures, too; and what belongs to that.
TEXT = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
TABLES = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
PICTURES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def read_folder(
    folder: Path,
    config: DecoderConfig,
    dtype: str | None = None,
    adapter: Adapter | None = None,
    *,
    wrapped: bool = False,
) -> dict[str, Any]:
    """The decoder's weights from `model.safetensors`, or from the files that its index names.

    Args:
        folder: a Hugging Face folder.
        config: of the decoder.
        dtype: to cast to; None keeps that of the file (float32, if it holds several).
        adapter: what is added to the weights; None: nothing.
        wrapped: True if only a part of the folder's model is this decoder.

    Returns:
        Arrays by name, those of layers stacked under `"layers"`.

    Raises:
        RunError: no weights, tensors that are missing, unexpected or of the wrong shape (by name), quantised ones.
    """
    with ExitStack() as stack:
        tensors = _of_text(_open(folder, stack)) if wrapped else _of_whole(_open(folder, stack), config)
        kinds = {name: tensor.get_dtype() for name, tensor in tensors.items()}
        quantised = sorted(name for name, kind in kinds.items() if kind not in DTYPES)
        if quantised:
            raise RunError(
                f"{folder}: the tensor {quantised[0]} is {kinds[quantised[0]]}; float32, bfloat16 or float16 is "
                "required: take an unquantised checkpoint, or a .gguf file."
            )
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
        ignore = _to_ignore(folder, config, tensors)
        check_shapes(str(folder), config, {name: shape for name, shape in shapes.items() if name not in ignore})
        held = {DTYPES[kind] for kind in kinds.values()}
        dtype = dtype or (held.pop() if len(held) == 1 else "float32")  # which holds what the others do
        if adapter is not None and wrapped:
            factors, scales = _of_text(adapter.factors), _of_text(adapter.scales)
            adapter = replace(adapter, factors=factors, scales=scales)
        if adapter is None:
            return assemble(config, lambda name: tensors[name][...], dtype)
        adapter.check({one.name: shapes[one.name] for one in stored(config)})
        return assemble(config, lambda name: adapter.added(name, tensors[name][...]), dtype)


def count_tensors(folder: Path) -> int:
    """How many tensors there are; without weights as many as there could be, since what is lacking is told later."""
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return MOST_LAYERS
    with ExitStack() as stack:
        return len(_open(folder, stack))


def _of_text(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to the part for text, by the names that its tensors would have alone."""
    found = {}
    for name, tensor in tensors.items():
        if not name.startswith(PICTURES):
            start = next((start for start in TEXT if name.startswith(start)), "")
            found[TEXT.get(start, "") + name.removeprefix(start)] = tensor
    return found


def _of_whole(tensors: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """The tensors of a model that was saved without its output matrix, as GPT-2 was, under their names beside one."""
    base, _, embed = FAMILIES[config.family].outer["embed"].partition(".")
    if embed not in tensors:
        return tensors
    return {name if name.startswith("lm_head.") else f"{base}.{name}": one for name, one in tensors.items()}


def assemble(config: DecoderConfig, read: Any, dtype: str) -> dict[str, Any]:
    """The decoder's weights from a function of Hugging Face's tensor names; matrices become `[inputs, outputs]`."""
    shapes = {("layers", name): (config.layers, *shape) for name, shape in layer_shapes(config).items()}
    shapes |= {(name,): shape for name, shape in outer_shapes(config).items()}
    weights: dict[str, Any] = {"layers": {}}
    parts: dict[tuple[str, ...], np.ndarray] = {}
    for one in stored(config):
        for name, part in zip(one.weights, one.parts(np.asarray(read(one.name))), strict=True):
            path = ("layers", name) if one.index else (name,)
            whole = parts.setdefault(path, np.empty(shapes[path], part.dtype))
            whole[one.index] = part
    for path, whole in parts.items():
        (weights["layers"] if path[0] == "layers" else weights)[path[-1]] = jnp.asarray(whole, dtype)
    return weights


def write_file(file: Path, config: DecoderConfig, weights: Mapping[str, Any]) -> None:
    """Writes the decoder's weights under Hugging Face's names; no value changes.

    Raises:
        OSError: the disk does not take them.
    """
    write_tensors(file, dict(_tensors(config, weights)))


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file; raises OSError where the disk does not take it."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(whole, file, metadata={"format": "pt"})  # transformers wants to be told this layout
    except SafetensorError as why:  # what the system said, as text
        raise OSError(str(why)) from why
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)  # safetensors leaves it to its owner alone, unlike all other files


def _tensors(config: DecoderConfig, weights: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    layers = {name: np.asarray(array) for name, array in weights["layers"].items()}
    for one in stored(config):
        if one.index:
            yield one.name, one.tensor([layers[name][one.index] for name in one.weights])
        else:
            yield one.name, one.tensor([np.asarray(weights[name]) for name in one.weights])


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Lazy tensors by name."""
    from safetensors import SafetensorError, safe_open

    if (folder / SINGLE).is_file():
        files = [SINGLE]
    elif (folder / INDEX).is_file():
        files = _shards(folder / INDEX)
    else:
        there = sorted(file.name for file in folder.glob("*.bin"))
        hint = f" It has {there[0]}, which only PyTorch reads: save the model as safetensors." if there else ""
        raise RunError(f"{folder} has no {SINGLE} and no {INDEX}; one of them is required.{hint}")
    tensors: dict[str, Any] = {}
    for name in files:
        check_file(folder / name)
        try:
            file = stack.enter_context(safe_open(folder / name, "np"))
        except (SafetensorError, OSError) as error:
            raise RunError(f"{folder / name} cannot be read ({error}); fetch or copy it again.") from error
        found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
        if twice := found.keys() & tensors.keys():
            raise RunError(f"{folder} has the tensor {min(twice)} in two files; fetch or copy it again.")
        tensors |= found
    return tensors


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        names = set((read_json(index) or {})["weight_map"].values())
        outside = [name for name in names if not inside(index.parent, name)]
    except (
        RunError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # of links, too
        raise RunError(f"{index} is no index of weights ({error}); fetch or copy it again.") from error
    if outside:
        raise RunError(
            f"{index} names {str(outside[0])[:80]!r}, which is no file of its folder; fetch or copy it again, links as "
            "the files that they stand for."
        )
    return sorted(names)


def _to_ignore(folder: Path, config: DecoderConfig, tensors: Mapping[str, Any]) -> set[str]:
    """Tensors that say nothing new: tables of rotary positions, masks, and an output matrix that is the embedding."""
    ignore = {name for name in tensors if name.endswith(TABLES)}
    outer = FAMILIES[config.family].outer
    head, embed = outer["head"], outer["embed"]
    if config.tied and head in tensors and embed in tensors:
        if not np.array_equal(tensors[head][...], tensors[embed][...]):
            raise RunError(
                f"{folder}: {head} differs from {embed}, but config.json has "
                "tie_word_embeddings true (or leaves it out where that is the default); set it to false there."
            )
        ignore.add(head)
    return ignore


def check_shapes(source: str, config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises for the first tensors that are missing, unexpected or of the wrong shape."""
    wanted = dict(expected_shapes(config))
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in wanted]
    if missing or unexpected:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has the unexpected {_some(unexpected)}"] * bool(
            unexpected
        )
        raise RunError(f"{source} {' and '.join(parts)}; do config.json and the weights belong together?")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise RunError(
                f"{source}: {name} has the shape {list(shapes[name])}; the configuration requires {list(shape)}. Do "
                "config.json and the weights belong together?"
            )


def expected_shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that a Hugging Face checkpoint of this configuration has."""
    yield from ((one.name, one.shape) for one in stored(config))


def _some(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
