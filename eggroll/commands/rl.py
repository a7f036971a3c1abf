"""`eggroll rl`: policies by evolution; `rl evaluate`, `rl render` and `rl list` beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from eggroll.commands.common import generations, given, metered, none_given, say, say_end, settings_options
from eggroll.extras import MissingPackageError
from eggroll.rl.settings import DEFAULTS, PlaySettings, Settings, settings_for
from eggroll.training.folder.layout import claimed
from eggroll.training.options import check_path

Run = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]


@dataclass(frozen=True)
class Rl:
    """Evolve a policy in an environment and write a run folder. See also `rl list`, `rl evaluate` and `rl render`.

    The folder receives metrics.jsonl, curve.png, parameters.npz with the statistics of observations, config.json,
    checkpoints, and a ledger from which `eggroll replay` rebuilds the policy of any generation. Ctrl-C ends the run
    early and writes what there is; --resume goes on with it.
    """

    options: Annotated[dict[str, Any], settings_options(Settings, DEFAULTS)] = field(default_factory=none_given)


@dataclass(frozen=True)
class RlEvaluate:
    """Play new episodes with the greedy policy of a run: mean return ± standard error."""

    run: Run
    """The run folder."""
    options: Annotated[dict[str, Any], settings_options(PlaySettings)] = field(default_factory=none_given)
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class RlRender:
    """Play an episode with the greedy policy of a run, and write it as a GIF."""

    run: Run
    """The run folder."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """The picture, a .gif."""
    parameters: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: the run's)")] = None
    """An .npz file of `eggroll replay` in place of the run's own parameters."""
    seed: int = 0
    """Decides the episode."""
    overwrite: bool = False
    """Replace the file."""


@dataclass(frozen=True)
class RlList:
    """Tell which environments there are, of the families that are installed."""


def rl(command: Rl) -> int:
    """Runs the command; the exit status."""
    settings = settings_for(**given(command.options))
    with claimed(settings.folder, overwrite=settings.overwrite, resume=settings.resume):
        return _train(settings)


def _train(settings: Settings) -> int:
    console = Console()
    what = f"up to {generations(settings.generations)} of {settings.population} members, into {settings.folder}"
    say(console, f"evolving a policy for {settings.env}, {what}")
    # Only here, so that help, refusals and the line above do not wait for Flax.
    from eggroll.rl.job import SHOWN
    from eggroll.rl.job import train as run

    result = metered(console, settings, settings.name, SHOWN, run)
    say(
        console,
        f"greedy return {result.greedy:.5g} ± {result.error:.2g} over {settings.evaluation_episodes} episodes, after "
        f"{generations(result.generations)} and {result.steps:,} steps in {result.seconds:.1f} s, compilation included"
        + (f" (resumed after {result.resumed})" if result.resumed else ""),
    )
    return say_end(console, result.ended, result.folder.iterdir())


def evaluate(command: RlEvaluate) -> int:
    """Runs the command; the exit status."""
    settings = PlaySettings(**given(command.options))
    settings.check()
    check_path("run", command.run)
    from eggroll.rl.job import evaluate as run

    found = run(command.run, settings)
    if command.json:
        print(json.dumps({"run": str(command.run), "episodes": settings.episodes, **found}))
        return 0
    text = f"return {found['greedy_return']:.5g} ± {found['greedy_error']:.2g} over {settings.episodes} episodes"
    say(Console(), f"{command.run}: {text}, {found['least']:.5g} to {found['most']:.5g}")
    return 0


def render(command: RlRender) -> int:
    """Runs the command; the exit status."""
    for name in ("run", "out"):
        check_path(name, getattr(command, name))
    from eggroll.rl.rendering import render as run

    made = run(command.run, command.out, command.parameters, seed=command.seed, overwrite=command.overwrite)
    say(Console(), f"an episode of {made.steps} steps, return {made.reward:.5g}, into {command.out}")
    return 0


def listed(command: RlList) -> int:
    """Runs the command; the exit status."""
    from eggroll.rl.adapters import FAMILIES, names

    console = Console()
    for family in FAMILIES:
        try:
            found = names(family)
        except MissingPackageError as why:
            say(console, f"{family}: {why}")
            continue
        what = f"{len(found)} environments" if found else "python:MODULE:NAME, an environment of your own"
        say(console, f"{family}: {what}")
        for name in sorted(found):
            tuned = "  (defaults of its own)" if f"{family}:{name}" in DEFAULTS else ""
            say(console, f"  {family}:{name}{tuned}")
    return 0
