"""`eggroll evaluate`: how good a language model is at a task."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from eggroll.commands.common import given, none_given, quiet_transformers, say, settings_options
from eggroll.llm.finetuning.settings import EvaluateSettings
from eggroll.training.folder.files import check_writable, write_text
from eggroll.training.options import check_path


@dataclass(frozen=True)
class Evaluate:
    """Score a language model at a task: mean reward ± standard error, length of answers, speed, and some answers."""

    options: Annotated[dict[str, Any], settings_options(EvaluateSettings)] = field(default_factory=none_given)
    json: bool = False
    """Print one JSON object and nothing else."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: none)")] = None
    """Write the JSON object, with every answer, to this file."""


def evaluate(command: Evaluate) -> int:
    """Runs the command; the exit status."""
    settings, out = EvaluateSettings(**given(command.options)), command.out
    settings.check()
    if out is not None:
        check_path("out", out)
        check_writable(out)
    quiet_transformers()
    from eggroll.llm.finetuning.evaluation import evaluate as run
    from eggroll.llm.finetuning.model_folders import asked_as_in_its_run
    from eggroll.llm.finetuning.samples import samples_of, shown

    settings = asked_as_in_its_run(settings)
    console = Console()
    measured, asked = run(settings, tell=(lambda line: None) if command.json else partial(say, console))
    result = {"model": settings.model, "task": settings.label, "split": settings.split}
    result |= {"system": settings.system, "max_tokens": settings.max_tokens, **measured.numbers()}
    if out is not None:
        answers = samples_of(asked, measured, len(asked))
        write_text(out, json.dumps({**result, "answers": answers}, indent=2, ensure_ascii=False) + "\n")
    if command.json:
        print(json.dumps(result))
        return 0
    for line in shown(samples_of(asked, measured, settings.samples)):
        say(console, line)
    failed = f", {measured.failed} of {len(asked)} answers could not be scored" if measured.failed else ""
    say(
        console,
        f"{settings.model} on {settings.label}: reward {measured} over {len(asked)} prompts, "
        f"{measured.answers.tokens:.1f} tokens an answer, {measured.tokens_per_second:,.0f} tokens/s{failed}",
    )
    return 0
