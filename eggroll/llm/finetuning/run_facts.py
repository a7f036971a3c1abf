"""What decides a run beside its settings: how much memory it counts with, and what its files say."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.llm.answers.memory import available
from eggroll.llm.finetuning.model_folders import digest, run_options
from eggroll.llm.finetuning.questions import Questions
from eggroll.llm.finetuning.settings import FinetuneSettings
from eggroll.training.folder.layout import holds_run
from eggroll.training.processes.deciding import first_decides


def facts_of(settings: FinetuneSettings, *, dated: bool = False) -> dict[str, Any]:
    """`budget` in bytes, which a run that goes on has from its start, and `files`: SHA-256 of prompts and reward.

    What is answered at once follows from the budget, and rounding from that: memory that others take meanwhile must not
    change a run. Nor must the day: where prompts are `dated`, by a chat template that writes the date into them, `date`
    is when the run began.
    """
    return first_decides(
        lambda: {
            "budget": _budget(settings),
            "files": _files(settings),
            **(_date(settings) if dated and settings.template != "none" else {}),
        }
    )


def digest_of(*asked: Questions) -> str:
    """SHA-256 of prompts as tokens, which follow from the tokenizer and its chat template, too."""
    found = hashlib.sha256()
    for questions in asked:
        for array in questions.prompts:
            found.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _budget(settings: FinetuneSettings) -> int:
    if settings.budget is not None:
        return int(settings.budget)
    kept = _kept(settings).get("budget")
    return int(available()) if kept is None else int(kept)


def _date(settings: FinetuneSettings) -> dict[str, str]:
    """Now, or that of the run that goes on; nothing for one of before dates were kept, whose prompts say today's."""
    kept = _kept(settings)
    return (
        {"date": kept.get("date") or datetime.now().isoformat(timespec="seconds")} if "date" in kept or not kept else {}
    )


def _kept(settings: FinetuneSettings) -> Mapping[str, Any]:
    """The options of the run that goes on; none for one that begins."""
    goes_on = settings.resume and not settings.force and holds_run(settings.folder)
    return (run_options(settings.folder) or {}) if goes_on else {}


def _files(settings: FinetuneSettings) -> dict[str, str]:
    found = [importlib.util.find_spec(reward.partition(":")[0]) for reward in settings.rewards]
    rewards = [Path(each.origin) if each is not None and each.origin else None for each in found]
    files = {"prompts_file": settings.prompts_file}
    for name, several in (("test_prompts_file", settings.test_prompts_files), ("reward", rewards)):
        files |= {f"{name}_{number + 1}" if number else name: file for number, file in enumerate(several)}
    known = {name: file for name, file in files.items() if file is not None and file.exists()}
    return {name: digest(file) for name, file in known.items()}
