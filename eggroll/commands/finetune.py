"""`eggroll finetune`: a language model on a reward."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from eggroll.commands.asking import AskOptions, unless
from eggroll.commands.common import (
    RunOptions,
    choices,
    default_by,
    generations,
    given,
    quiet_transformers,
    say,
    say_end,
)
from eggroll.llm.finetuning.settings import DEFAULTS, FinetuneSettings, Optimizer, settings_for
from eggroll.training.folder.layout import check_kept, claimed


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a language model on a reward for whole answers, by evolution, and write a run folder.

    The folder receives the new model (a Hugging Face folder, model/), metrics.jsonl, curve.png, samples.jsonl,
    evaluation.json, config.json, a checkpoint, and a ledger from which `eggroll replay` rebuilds any generation. Ctrl-C
    ends the run early and writes what there is; --resume goes on with it.
    """

    ask: Annotated[AskOptions, tyro.conf.arg(name="")]
    method: str = FinetuneSettings.method
    """EGGROLL (low-rank noise, large population), or full-rank noise (arXiv 2509.24372)."""
    population: Annotated[int | None, default_by(DEFAULTS, "population", "INT")] = None
    """Members in a generation."""
    rank: Annotated[int | None, unless("INT", str(FinetuneSettings.rank))] = None
    """Columns of each noise factor (eggroll)."""
    sigma: Annotated[float | None, default_by(DEFAULTS, "sigma", "FLOAT")] = None
    """Noise scale, in the units of the weights."""
    learning_rate: Annotated[
        float | None, unless("FLOAT", "sgd sigma²·√population/6, adam sigma/20, full-rank sigma/2")
    ] = None
    """The optimizer's; for full-rank the α of its paper."""
    optimizer: Annotated[Optimizer | None, unless(choices(Optimizer), FinetuneSettings.optimizer)] = None
    """Of eggroll."""
    generations: int = FinetuneSettings.generations
    """Number of updates."""
    prompts: int = FinetuneSettings.prompts
    """Different prompts in a generation."""
    groups: Annotated[int | None, unless("INT", "eggroll --prompts, full-rank 1")] = None
    """Groups of members: each has its share of the prompts and compares fitness within. 1: all answer all prompts."""
    chunk: Annotated[int | None, unless("INT", "what fits --memory")] = None
    """Members that answer at once (eggroll)."""
    token_budget: Annotated[int | None, unless("INT", "none")] = None
    """End after this many tokens of generated answers."""
    eval_every: int = FinetuneSettings.eval_every
    """Generations between two evaluations on held-out prompts."""
    eval_prompts: Annotated[int | None, unless("INT", "64, or what there is")] = None
    """Held-out prompts."""
    pool: Annotated[int | None, unless("INT", "1024, or what there is")] = None
    """Training prompts to draw from."""
    samples: int = FinetuneSettings.samples
    """Held-out prompts whose answers are shown."""
    seed: int = FinetuneSettings.seed
    """Decides prompts, noise and draws."""
    out: Annotated[Path | None, unless("PATH", "runs/TASK-METHOD")] = None
    """Run folder."""
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunOptions(keep=FinetuneSettings.keep, keep_best=FinetuneSettings.keep_best)
    )


def finetune(command: Finetune) -> int:
    """Runs the command; the exit status."""
    settings = settings_for(**given(command))
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
    from eggroll.training.progress import Meter
    from eggroll.training.stopping import StopRequest

    budget = settings.token_budget
    shown_as = SHOWN if budget is None else replace(SHOWN, goal=("tokens", budget))
    with StopRequest() as stop, Meter(console, settings.generations, settings.label, shown_as) as meter:
        result = run(settings, show=meter.update, asked_to_stop=stop.was_asked)
    for line in shown(result.samples):
        say(console, line)
    say(
        console,
        f"held-out reward {_spread(result.before)} before, {_spread(result.after)} after "
        f"{generations(result.generations)}, {result.tokens} generated tokens and {result.seconds:.1f} s"
        + (f" (resumed after {result.resumed})" if result.resumed else ""),
    )
    if result.failed:
        say(console, f"{result.failed} answers in training could not be scored: scorer_errors in metrics.jsonl")
    return say_end(console, result.ended, settings.folder.iterdir())


def _spread(numbers) -> str:
    text = "unknown" if numbers["reward"] is None else f"{numbers['reward']:.4f}"
    text += "" if numbers["error"] is None else f" ± {numbers['error']:.4f}"
    failed = numbers["scorer_errors"]
    return text + (f" ({failed} of {numbers['prompts']} answers could not be scored)" if failed else "")
