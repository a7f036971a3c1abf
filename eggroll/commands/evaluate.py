"""`eggroll evaluate`: how good a language model is at a task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from eggroll.commands.asking import AskOptions, unless
from eggroll.commands.common import given, quiet_transformers, say
from eggroll.llm.finetuning.settings import EvaluateSettings, Split
from eggroll.training.folder.files import check_writable, write_text


@dataclass(frozen=True)
class Evaluate:
    """Score a language model at a task: mean reward ± standard error, length of answers, speed, and some answers."""

    ask: Annotated[AskOptions, tyro.conf.arg(name="")]
    prompts: Annotated[int | None, unless("INT", "256, or what there is")] = None
    """Prompts that are answered."""
    split: Split = EvaluateSettings.split
    """Which prompts: held-out ones, or those that fine-tuning may have seen."""
    seed: int = EvaluateSettings.seed
    """Decides the prompts; that of a run gives the ones that it was tested on."""
    samples: int = EvaluateSettings.samples
    """Answers that are shown."""
    json: bool = False
    """Print one JSON object and nothing else."""
    out: Annotated[Path | None, unless("PATH", "none")] = None
    """Write the JSON object, with every answer, to this file."""


def evaluate(command: Evaluate) -> int:
    """Runs the command; the exit status."""
    options = given(command)
    as_json, out = options.pop("json"), options.pop("out")
    settings = EvaluateSettings(**options)
    settings.check()
    if out is not None:
        check_writable(out)
    quiet_transformers()
    from eggroll.llm.finetuning.evaluation import evaluate as run
    from eggroll.llm.finetuning.model_folders import asked_as_in_its_run
    from eggroll.llm.finetuning.samples import samples_of, shown

    settings = asked_as_in_its_run(settings)
    measured, asked = run(settings)
    result = {"model": settings.model, "task": settings.label, "split": settings.split}
    result |= {"system": settings.system, "max_tokens": settings.max_tokens, **measured.numbers()}
    if out is not None:
        answers = samples_of(asked, measured, len(asked))
        write_text(out, json.dumps({**result, "answers": answers}, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        print(json.dumps(result))
        return 0
    console = Console()
    for line in shown(samples_of(asked, measured, settings.samples)):
        say(console, line)
    failed = f", {measured.failed} of {len(asked)} answers could not be scored" if measured.failed else ""
    say(
        console,
        f"{settings.model} on {settings.label}: reward {measured} over {len(asked)} prompts, "
        f"{measured.answer_tokens:.1f} tokens an answer, {measured.tokens_per_second:,.0f} tokens/s{failed}",
    )
    return 0
