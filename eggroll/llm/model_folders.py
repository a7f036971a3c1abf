"""Folders of language models: found by what a user names, written whole, and as the base of a ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eggroll.llm.loading import LanguageModel, load, save
from eggroll.training.errors import RunError
from eggroll.training.folder import CONFIG, MODEL, not_writable
from eggroll.training.ledger import Summary

WEIGHTS = "*.safetensors"


def source_of(name: str | Path) -> str | Path:
    """What to load: the new model of a run folder of `eggroll finetune`; anything else as it is."""
    inner = Path(name) / MODEL
    return inner if (inner / CONFIG).is_file() else name


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
    config = base / CONFIG
    if not config.is_file():
        return None
    try:
        options = json.loads(config.read_text(encoding="utf-8"))["options"]
        return source_of(options["model"]) if "method" in options else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
