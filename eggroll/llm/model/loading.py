"""A language model from a folder, a hub id or a GGUF file, and back to a folder that transformers loads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from eggroll.engine.annotations import PyTree
from eggroll.extras import MissingPackageError, needed_for
from eggroll.llm.model.adapters import CONFIG, WEIGHTS, Adapter, read_adapter
from eggroll.llm.model.config import WRAPPERS, DecoderConfig, config_from, text_part
from eggroll.llm.model.decoder import Decoder
from eggroll.llm.model.files import PARTS, check_ordinary, is_file, read_json, write_json
from eggroll.llm.model.lora import Adapting, adapted, write_adapter
from eggroll.llm.model.tokens import (
    check_tokenizer,
    end_strings,
    end_tokens,
    has_tokenizer,
    load_tokenizer,
    pad_token,
    save_tokenizer,
    tell_unread,
)
from eggroll.llm.model.weights_hf import SINGLE, count_tensors, read_folder, write_file
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import MANIFEST, partial_name, remove
from eggroll.training.folder.integrity import check_model
from eggroll.training.options import check_path

__all__ = ["LanguageModel", "load", "save"]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with what belongs to it.

    Args:
        model: the decoder.
        tokenizer: of transformers, with a chat template if the checkpoint has one.
        config: of the decoder.
        stop: tokens that end an answer.
        pad: token that fills up short prompts; its value is never looked at.
        source: where it was loaded from.
        settings: contents of `config.json`.
        generation: contents of `generation_config.json`; empty without one.
        stop_strings: texts that end an answer.
        base: of a model with adapters of its own: what they are beside, a hub id or the path of a folder.
    """

    model: Decoder
    tokenizer: Any
    config: DecoderConfig
    stop: tuple[int, ...]
    pad: int
    source: str
    settings: Mapping[str, Any] = field(repr=False, default_factory=dict)
    generation: Mapping[str, Any] = field(repr=False, default_factory=dict)
    stop_strings: tuple[str, ...] = ()
    base: str = ""


@needed_for("language models")
def load(source: str | Path, *, dtype: str | None = None, lora: Adapting | None = None) -> LanguageModel:
    """Loads a language model; without a network when it is local.

    Args:
        source: a Hugging Face folder (`config.json`, safetensors, tokenizer), a `.gguf` file, or a hub id such as
            "HuggingFaceTB/SmolLM2-135M-Instruct". A LoRA adapter of PEFT in the folder is added to the weights; alone,
            to those of the base model that it names.
        dtype: "float32", "bfloat16" or "float16" to cast the weights to; None (default) keeps the file's, float32 for a
            `.gguf` file.
        lora: adapters that the model has beside its matrices, in parameters of their own. Those of an adapter's folder
            are taken up, which is not merged then. Default None: none.

    Returns:
        The model, its tokenizer, and the tokens that end an answer.

    Raises:
        RunError: nothing there, an unknown architecture or setting, no tokenizer, weights that do not fit, or adapters
            for what PEFT could not read them with.

    Example:
        >>> from eggroll.llm import load
        >>> load("nowhere/at/all")
        Traceback (most recent call last):
        eggroll.training.errors.RunError: got the model 'nowhere/at/all'; there is no such folder or file, ...
    """
    if dtype is not None and dtype not in DTYPES:
        raise RunError(f"got dtype={dtype!r}; known are {', '.join(DTYPES)}, or None for the file's own.")
    path = Path(source)
    whole, named = is_file(path), ""
    if whole:
        if path.suffix != ".gguf":
            raise RunError(f"got the file {path}; a folder, a .gguf file or a hub id is required.")
        if lora is not None:
            raise RunError(f"got adapters for {path}; they name their base, a folder or a hub id: llm.save makes one.")
        from eggroll.llm.model.gguf_file import read_gguf

        settings, generation, tokenizer, config, weights = read_gguf(path, dtype)
    else:
        folder = _download(str(source)) if whole is None else path
        adapter, base = _adapted(folder)
        settings, generation, config = _configured(base)
        tokenizer = load_tokenizer(folder if has_tokenizer(folder) else base)
        wrapped = settings.get("model_type") in WRAPPERS
        weights = read_folder(base, config, dtype, adapter if lora is None else None, wrapped=wrapped)
        settings = text_part(settings)
        if lora is not None:
            named = _base_name(folder, str(source) if adapter is None else str(adapter.base), base, wrapped)
            config, weights = adapted(config, weights, lora, adapter)
    check_tokenizer(tokenizer, config, str(source))
    stop = end_tokens(tokenizer, settings, generation, config, str(source))
    pad = pad_token(tokenizer, stop, config)
    model, strings = decoder_of(config, weights), end_strings(generation, str(source))
    tell_unread(generation, str(source))
    return LanguageModel(model, tokenizer, config, stop, pad, str(source), settings, generation, strings, named)


def _base_name(folder: Path, named: str, base: Path, wrapped: bool) -> str:
    """How adapters name their base: a hub id as it is, a folder by its whole path, which has one meaning."""
    if wrapped:
        raise RunError(f"got adapters for {base}, of which text is a part; save that with llm.save, and adapt it.")
    if (base / CONFIG).exists():
        raise RunError(f"{base} has a model and an adapter; put them into folders of their own to go on with that.")
    return str(base.absolute()) if base in (Path(named), folder / named) else named


def _adapted(folder: Path) -> tuple[Adapter | None, Path]:
    """The adapter in a folder, if there is one, and the folder of the model that it, or nothing, is added to."""
    check_ordinary(folder)
    check_model(folder)
    adapter = read_adapter(folder)
    if adapter is None or (folder / "config.json").exists():
        return adapter, folder
    if adapter.base is None:
        raise RunError(
            f"{folder} has an adapter that names no base model; add base_model_name_or_path to its settings."
        )
    # A path is meant as PEFT means it, from where one stands, or else from the adapter's own place.
    places = [Path(adapter.base), folder / adapter.base]
    base = next((place for place in places if is_file(place) is False), None) or _download(adapter.base)
    if (base / "adapter_config.json").exists():
        raise RunError(f"{folder} is an adapter of {base}, which has one itself; merge that first, and save the model.")
    return adapter, base


def holds_model(folder: Path) -> bool:
    """Whether a folder is that of a model or of an adapter."""
    return any(os.path.isfile(folder / name) for name in ("config.json", CONFIG))  # False for what no system looks at


def _configured(folder: Path) -> tuple[dict[str, Any], dict[str, Any], DecoderConfig]:
    """What `config.json` and `generation_config.json` of a folder hold, and the decoder's configuration."""
    check_ordinary(folder)
    check_model(folder)
    settings = read_json(folder / "config.json")
    if settings is None:
        saved = sorted(inner.name for inner in folder.glob("checkpoint-*") if holds_model(inner))
        hint = f" It has {', '.join(saved[-3:])}, which a trainer saved: give one of them." if saved else ""
        raise RunError(f"{folder} has no config.json; a Hugging Face model folder is required.{hint}")
    tensors = count_tensors(folder)
    try:
        config = config_from(settings, most_layers=tensors)
    except MissingPackageError:
        raise
    except RunError as error:
        raise RunError(f"{folder / 'config.json'}: {error}") from error
    return settings, read_json(folder / "generation_config.json") or {}, config


@needed_for("language models")
def save(language: LanguageModel, folder: str | Path, params: PyTree = None) -> None:
    """Writes a Hugging Face folder, which `load` and transformers read: weights, configuration, tokenizer.

    Of a model with adapters these alone, as PEFT does, with the name of their base.

    Args:
        language: what was loaded.
        folder: made if need be; files of these names in it are replaced.
        params: weights to write in place of the model's own: `nnx.split(model, nnx.Param)[1]` or of that structure.

    Raises:
        RunError: `params` of another structure or shape than the model's, adapters into the folder of a model, or a
            folder without a name.

    Example:
        >>> from eggroll.llm import save
        >>> save(language, "tuned", params=state.params)  # doctest: +SKIP
    """
    check_path("folder", folder)
    own = nnx.split(language.model, nnx.Param)[1]
    params = own if params is None else params
    shapes, wanted = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (_plain(params), _plain(own)))
    if shapes != wanted:
        raise RunError(f"got params of the shapes {shapes}; those of the model are required: {wanted}.")
    folder, fresh = Path(folder), Path(folder) / partial_name("model")
    if language.config.lora is not None and (folder / "config.json").exists():
        raise RunError(f"got {folder} for adapters, which has a model; they would be taken for its own: name another.")
    folder.mkdir(parents=True, exist_ok=True)
    fresh.mkdir()
    try:
        _write(language, fresh, _plain(params))
        # The index of an older save would be read beside the new file, and the manifest is that of a run's model.
        for stale in (
            MANIFEST,
            "model.safetensors.index.json",
            *(CONFIG, WEIGHTS),  # of an adapter, which would be added to the model
            *(one.name for one in folder.glob("model-*-of-*.safetensors")),
        ):
            (folder / stale).unlink(missing_ok=True)
        for made in fresh.iterdir():
            if made.is_dir():
                remove(folder / made.name)
            made.replace(folder / made.name)  # where it is a link, what it leads to stays as it is
    finally:
        remove(fresh)


def _write(language: LanguageModel, folder: Path, weights: Mapping[str, Any]) -> None:
    """All files."""
    save_tokenizer(language.tokenizer, folder)
    if language.config.lora is not None:
        write_adapter(folder, language.config, weights, language.base)
        return
    write_file(folder / SINGLE, language.config, weights)
    settings = {name: value for name, value in language.settings.items() if name not in ("torch_dtype", "dtype")}
    settings["torch_dtype" if "torch_dtype" in language.settings else "dtype"] = str(weights["embed"].dtype)
    write_json(folder / "config.json", settings)
    if language.generation:
        write_json(folder / "generation_config.json", language.generation)


def decoder_of(config: DecoderConfig, weights: Mapping[str, Any]) -> Decoder:
    """A decoder with these weights."""
    dtype = weights["embed"].dtype
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype)))
    nnx.replace_by_pure_dict(state, dict(weights))
    return nnx.merge(graph, state)


def _plain(params: PyTree) -> dict[str, Any]:
    """Arrays in nested dictionaries, from a state or module state of NNX or from what has its structure."""
    return nnx.to_pure_dict(params) if isinstance(params, nnx.State) else dict(params)


def _download(source: str) -> Path:
    """The folder of a hub's model, fetched if it is not in the cache."""
    problem = f"got the model {source!r}; there is no such folder or file"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise RunError(f"{problem}, and a hub id has the form owner/name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=PARTS))
    except Exception as error:  # no network, no such model, no access: each an error of its own class
        raise RunError(
            f"{problem}, and the hub does not give it ({_line(error)}). Give a folder, or check the id."
        ) from error


def _line(error: Exception) -> str:
    """The first line of what an error says, whose end is for the sentence around it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(" .:")
