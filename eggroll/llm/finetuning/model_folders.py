"""Folders of language models: found by what a user names, written whole, and as the base of a ledger."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from eggroll.engine.annotations import PyTree
from eggroll.llm.finetuning.asked import Asked
from eggroll.llm.finetuning.settings import FinetuneSettings
from eggroll.llm.model.loading import LanguageModel, holds_model, load, save
from eggroll.llm.model.lora import Adapting
from eggroll.training import processes
from eggroll.training.errors import RunError, check_known
from eggroll.training.folder.disk import not_writable, open_to_read, partial_name, remove
from eggroll.training.folder.integrity import check_run, write_manifest
from eggroll.training.folder.layout import CONFIG, MODEL, read_config
from eggroll.training.ledger.reader import Summary
from eggroll.training.options import from_json

LOGGER = logging.getLogger("eggroll")
WEIGHTS = "*.safetensors"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
AS_THERE = (
    *("system", "template", "template_options", "answer_prefix", "max_tokens"),
    *("task_options", "test_prompts_file", "prompt_column", "worst", "degenerate"),
)
FACTS = frozenset({"budget", "date", "files", "prompt_tokens"})  # that a run's options have beside its settings
AskedT = TypeVar("AskedT", bound=Asked)


def source_of(name: str | Path) -> str | Path:
    """What to load: the new model of a run folder of `eggroll finetune`; anything else as it is.

    Raises:
        RunError: a run folder that has no model.
    """
    inner = Path(name) / MODEL
    if holds_model(inner):
        check_run(Path(name))
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
        return read_config(Path(folder))["options"]
    except RunError:
        return None


def asked_as_in_its_run(asked: AskedT) -> AskedT:
    """Where the model is that of a run of the same task or reward, and nothing else is said, it is asked as there."""
    folder = Path(asked.model)
    options = run_options(folder) or (run_options(folder.parent) if folder.name == MODEL else None) or {}
    if (
        options.get("task") != asked.task
        or as_given(options.get("reward")) != asked.reward
        or not _same_prompts(asked, options)
    ):
        return asked
    known = {f.name for f in fields(FinetuneSettings)} | FACTS
    check_known(f"the options of the run in '{folder}'", options, known)
    options = {"degenerate": "scored", **options}  # of a run that could not choose
    more = {name: options.get(name) for name in AS_THERE if getattr(asked, name) in (None, ())}
    return replace(asked, **{n: as_given(x) for n, x in more.items() if x is not None})


def as_given(value: Any) -> Any:
    """A setting as it was before it was JSON."""
    return tuple(value) if isinstance(value, list) else value


def _same_prompts(asked: Asked, options: Mapping[str, Any]) -> bool:
    """By content, where that is known: the same file has many names."""
    name, file = options.get("prompts_file"), asked.prompts_file
    if name is None or file is None:
        return name is file
    known = (options.get("files") or {}).get("prompts_file")
    return name == file.as_posix() or (known is not None and file.exists() and known == digest(file))


def digest(file: Path) -> str:
    """SHA-256 of a file, or of the names and files in a folder."""
    if file.is_dir():
        inner = sorted(each for each in file.rglob("*") if each.is_file())
        lines = [f"{each.relative_to(file).as_posix()} {digest(each)}\n" for each in inner]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open_to_read(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_model(language: LanguageModel, folder: Path, params: Any) -> None:
    """Writes a Hugging Face folder; one that is there is replaced, once the new one is whole.

    Raises:
        RunError: it cannot be written, or something else than a model's folder is there.
    """
    check_replaceable(folder)
    partial = folder.with_name(partial_name(folder.name))
    try:
        partial.mkdir(parents=True)
        save(language, partial, params)
        write_manifest(partial, {})
        remove(folder)
        partial.rename(folder)
    except OSError as why:
        with suppress(OSError):
            remove(partial)
        raise not_writable(folder.parent, why) from why


class Delivered:
    """The model that a run leaves in its folder: the best held-out one of its evaluations, or the last.

    Args:
        language: what it is written as.
        folder: where it is written; as soon as there is a better one, so that a run that is killed leaves it, too.
        best: whether the best one is, or the last.

    Attributes:
        generation: of the one that there is; 0: the model that the run began with.
        numbers: how it did, see `Measured.numbers`.
    """

    def __init__(self, language: LanguageModel, folder: Path, *, best: bool) -> None:
        self._language, self._folder, self._best = language, folder, best
        self.generation, self.numbers = 0, {}

    def begin(self, before: Mapping[str, Any], found: Any) -> None:
        """From how the model did at the start and, in a run that goes on, from what `record` said."""
        self.generation, self.numbers = 0, dict(before)
        there = isinstance(found, dict) and {"generation", "reward", "error"} <= found.keys()
        if self._best and there and holds_model(self._folder):
            self.generation, self.numbers = int(found["generation"]), {**before, **found}

    def record(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        return {"best": {**self.numbers, "generation": self.generation}} if self._best else {}

    def offer(self, params: PyTree, generation: int, numbers: Mapping[str, Any]) -> None:
        """Takes the model of a generation if it did better."""
        if self._best and _reward(numbers) > _reward(self.numbers):
            self._take(params, generation, numbers)

    def end(self, params: PyTree, generation: int, numbers: Mapping[str, Any], base: PyTree) -> None:
        """Takes the last one, or has the best one in the folder, which may be the one that the run began with."""
        if not self._best:
            self._take(params, generation, numbers)
            return
        self.offer(params, generation, numbers)
        if self.generation == 0:
            self._take(base, 0, self.numbers)
            if generation:
                LOGGER.warning(
                    "no evaluation on held-out prompts was better than the start: model/ is the model that the run "
                    "began with (--deliver last: the one that it ended with). Lower --sigma or --learning-rate, or "
                    "train longer."
                )

    def lost(self, params: PyTree) -> None:
        """Before an error ends the run: the last one where there would be none."""
        if not self._best or not self._folder.exists():
            self._take(params, self.generation, self.numbers)

    def _take(self, params: PyTree, generation: int, numbers: Mapping[str, Any]) -> None:
        self.generation, self.numbers = generation, dict(numbers)
        if processes.is_main():
            write_model(self._language, self._folder, params)


def _reward(numbers: Mapping[str, Any]) -> float:
    reward = numbers.get("reward")
    return -math.inf if reward is None else reward


def check_replaceable(folder: Path) -> None:
    """Raises `RunError` where a folder holds something else than a model's files, which replacing it would remove."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"'{folder}' is a file, and a model is a folder; choose another place with --out.")
    entries = list(folder.iterdir())
    model = any(folder.glob(WEIGHTS)) and holds_model(folder)
    if entries and (not model or any(entry.is_dir() for entry in entries) or run_options(folder) is not None):
        raise RunError(
            f"'{folder}' is no folder of a model alone, and replacing it would remove all that is in it; choose "
            "another place with --out."
        )


def check_apart(out: Path, kept: Path) -> None:
    """Raises `RunError` where replacing `out` would remove `kept`."""
    if kept.exists() and kept.resolve().is_relative_to(out.resolve()):
        raise RunError(f"got '{out}' for the new model, where '{kept}' is; choose another place with --out.")


def base_model(base: Path) -> str | Path | None:
    """The language model that a base of a ledger is or names: itself, or what a run of `eggroll finetune` began with.

    A hub id is one, too.

    None: it is none, but an `.npz` file or the folder of another kind of run.
    """
    if not os.path.exists(base) and HUB_ID.fullmatch(str(base)) and base.suffix != ".npz":
        return str(base)
    if base.suffix == ".gguf" or (os.path.isdir(base) and any(base.glob(WEIGHTS))):
        return base
    options = run_options(base) or {}
    return source_of(options["model"]) if "method" in options and "model" in options else None


def adapting_of(settings: FinetuneSettings) -> Adapting | None:
    """Which adapters a run evolves; None: the model's weights."""
    if settings.lora is None:
        return None
    return Adapting(settings.lora, settings.lora_alpha, settings.lora_target_modules, settings.seed)


def load_base(source: str | Path, ledger: Summary) -> LanguageModel:
    """The model, in the dtype and with the adapters of the run that wrote the ledger.

    Raises:
        RunError: it cannot be loaded, the ledger has no settings yet, or it is one of adapters that lies outside the
            folder of its run.
    """
    plan: list[Mapping[str, Any]] = ledger.content.get("plan") or []
    dtypes = {leaf["dtype"] for leaf in plan}
    if len(dtypes) > 1:
        raise RunError(
            f"'{ledger.path}' has parameters of {', '.join(sorted(dtypes))}; a model is loaded in one dtype. It was "
            "not written by eggroll finetune: give its base as an .npz file."
        )
    return load(source, dtype=min(dtypes, default=None), lora=_adapting_there(ledger, plan))


def _adapting_there(ledger: Summary, plan: list[Mapping[str, Any]]) -> Adapting | None:
    """The adapters that a ledger is of: which, only the configuration of its run says."""
    if not any(leaf["path"].endswith("_lora_a") for leaf in plan):
        return None
    options = from_json(FinetuneSettings, run_options(ledger.path.parent) or {})
    if options.get("lora") is None:
        raise RunError(
            f"'{ledger.path}' is of adapters, and there is no {CONFIG} of its run beside it, which says how they "
            "began; give the run's folder."
        )
    return adapting_of(FinetuneSettings(**options))
