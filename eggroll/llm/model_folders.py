"""Folders of language models: found by what a user names, written whole, and as the base of a ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from eggroll.llm.loading import LanguageModel, load, save
from eggroll.llm.settings import Asked
from eggroll.training.errors import RunError
from eggroll.training.folder import CONFIG, MODEL, not_writable
from eggroll.training.ledger import Summary

WEIGHTS = "*.safetensors"
AskedT = TypeVar("AskedT", bound=Asked)


def source_of(name: str | Path) -> str | Path:
    """What to load: the new model of a run folder of `eggroll finetune`; anything else as it is.

    Raises:
        RunError: a run folder that has no model.
    """
    inner = Path(name) / MODEL
    if (inner / CONFIG).is_file():
        return inner
    if run_options(name) is not None:
        raise RunError(
            f"'{name}' is the folder of a run that has no language model: the run is another command's, or has not "
            "ended yet. Let it end (--resume goes on with it), or name another model."
        )
    return name


def run_options(folder: str | Path) -> Mapping[str, Any] | None:
    """The options of the run in a run folder; None where there is none."""
    try:
        options = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return options if isinstance(options, Mapping) else None


def asked_as_in_its_run(asked: AskedT) -> AskedT:
    """Where the model is that of a run of the same task or reward, and nothing else is said, it is asked as there."""
    options = run_options(asked.model) or {}
    if any(options.get(name) != getattr(asked, name) for name in ("task", "reward")):
        return asked
    more = {name: options.get(name) for name in ("system", "max_tokens") if getattr(asked, name) is None}
    return replace(asked, **{name: value for name, value in more.items() if value is not None})


def write_model(language: LanguageModel, folder: Path, params: Any) -> None:
    """Writes a Hugging Face folder; one that is there is replaced, once the new one is whole.

    Raises:
        RunError: it cannot be written.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        save(language, partial, params)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as why:
        raise not_writable(folder.parent, why) from why


def base_model(base: Path) -> str | Path | None:
    """The language model that a base of a ledger is or names: itself, or what a run of `eggroll finetune` began with.

    None: it is none, but an `.npz` file or the folder of another kind of run.
    """
    if base.suffix == ".gguf" or (base.is_dir() and any(base.glob(WEIGHTS))):
        return base
    options = run_options(base) or {}
    return source_of(options["model"]) if "method" in options and "model" in options else None


def load_base(source: str | Path, ledger: Summary) -> LanguageModel:
    """The model, in the dtype of the run that wrote the ledger.

    Raises:
        RunError: it cannot be loaded, or the ledger has no settings yet.
    """
    plan: list[Mapping[str, Any]] = ledger.content.get("plan") or []
    dtypes = {leaf["dtype"] for leaf in plan}
    if len(dtypes) > 1:
        raise RunError(
            f"'{ledger.path}' has parameters of {', '.join(sorted(dtypes))}; a model is loaded in one dtype. It was "
            "not written by eggroll finetune: give its base as an .npz file."
        )
    return load(source, dtype=min(dtypes, default=None))
