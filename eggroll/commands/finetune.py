"""`eggroll finetune`: a language model on a reward."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

from rich.console import Console

from eggroll.commands.common import (
    generations,
    given,
    metered,
    none_given,
    quiet_transformers,
    say,
    say_end,
    settings_options,
)
from eggroll.llm.finetuning.settings import DEFAULTS, FinetuneSettings, settings_for
from eggroll.training.folder.layout import check_kept, claimed


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a language model on a reward for whole answers, by evolution, and write a run folder.

    The folder receives the new model (a Hugging Face folder, model/), metrics.jsonl, curve.png, samples.jsonl,
    evaluation.json, config.json, a checkpoint, and a ledger from which `eggroll replay` rebuilds any generation. Ctrl-C
    ends the run early and writes what there is; --resume goes on with it.
    """

    options: Annotated[dict[str, Any], settings_options(FinetuneSettings, DEFAULTS)] = field(default_factory=none_given)


def finetune(command: Finetune) -> int:
    """Runs the command; the exit status."""
    settings = settings_for(**given(command.options))
    with claimed(settings.folder, overwrite=settings.overwrite, resume=settings.resume):
        check_kept(settings.folder, settings.model, resume=settings.resume)
        return _finetune(settings)


def _finetune(settings: FinetuneSettings) -> int:
    console = Console()
    what = f"{generations(settings.generations)} of {settings.population} members ({settings.method})"
    say(console, f"fine-tuning {settings.model} on {settings.label}, {what}, into {settings.folder}")
    # Only here, so that help, refusals and the line above do not wait for Flax and transformers.
    quiet_transformers()
    from eggroll.llm.finetuning.job import SHOWN
    from eggroll.llm.finetuning.job import finetune as run
    from eggroll.llm.finetuning.samples import shown

    budget = settings.token_budget
    shown_as = SHOWN if budget is None else replace(SHOWN, goal=("tokens", budget))
    result = metered(console, settings, settings.label, shown_as, run, tell=partial(say, console))
    for line in shown(result.samples):
        say(console, line)
    say(
        console,
        f"held-out reward {_spread(result.before)} before, {_spread(result.after)} after "
        f"{generations(result.generations)}, {result.tokens} generated tokens{_of(budget)} and {result.seconds:.1f} s"
        + (f" (resumed after {result.resumed})" if result.resumed else ""),
    )
    if result.delivered != result.generations:
        say(console, f"model/ is that of generation {result.delivered}, the best on held-out prompts (--deliver last)")
    if budget is not None and result.ended == "finished" and result.generations < settings.generations:
        say(console, "ended by --token-budget, which one generation more could have exceeded")
    if result.failed:
        say(console, f"{result.failed} answers in training could not be scored: scorer_errors in metrics.jsonl")
    return say_end(console, result.ended, settings.folder.iterdir())


def _of(budget: int | None) -> str:
    return "" if budget is None else f" of {budget}"


def _spread(numbers) -> str:
    text = "unknown" if numbers["reward"] is None else f"{numbers['reward']:.4f}"
    text += "" if numbers["error"] is None else f" ± {numbers['error']:.4f}"
    failed = numbers["scorer_errors"]
    return text + (f" ({failed} of {numbers['prompts']} answers could not be scored)" if failed else "")
