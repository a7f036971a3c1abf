"""`eggroll train`: a network on handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from eggroll.commands.common import RunOptions, choices, default_by, generations, given, say, say_end
from eggroll.recipes.settings import DEFAULTS, Distribution, Model, Settings, Shaping, settings_for
from eggroll.training.folder.layout import claimed


@dataclass(frozen=True)
class Train:
    """Train a network on handwritten digits by evolution and write a run folder.

    The folder receives metrics.jsonl, curve.png, parameters.npz, config.json, checkpoints, and a ledger from which
    `eggroll replay` rebuilds the parameters of any generation. Ctrl-C ends the run early and writes what there is;
    --resume goes on with it.
    """

    model: Model = Settings.model
    """The network: an ordinary Flax NNX module."""
    population: Annotated[int | None, default_by(DEFAULTS, "population", "INT")] = None
    """Members in a generation; an even number."""
    rank: Annotated[int | None, default_by(DEFAULTS, "rank", "INT")] = None
    """Columns of each noise factor."""
    sigma: Annotated[float | None, default_by(DEFAULTS, "sigma", "FLOAT")] = None
    """Noise scale, in the units of the weights."""
    generations: Annotated[int | None, default_by(DEFAULTS, "generations", "INT")] = None
    """Number of updates."""
    learning_rate: Annotated[float | None, default_by(DEFAULTS, "learning_rate", "FLOAT")] = None
    """Adam's learning rate at the start; it falls along a cosine."""
    batch_size: Annotated[int | None, default_by(DEFAULTS, "batch_size", "INT")] = None
    """Images in a generation's minibatch, the same for all members."""
    distribution: Annotated[Distribution | None, default_by(DEFAULTS, "distribution", choices(Distribution))] = None
    """Distribution of the noise."""
    shaping: Annotated[Shaping | None, default_by(DEFAULTS, "shaping", choices(Shaping))] = None
    """How fitness becomes the weight of a member."""
    seed: int = Settings.seed
    """Decides initial parameters, noise and the order of the data."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/digits-MODEL)")] = None
    """Run folder."""
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def train(command: Train) -> int:
    """Runs the command; the exit status."""
    settings = settings_for(**given(command))
    with claimed(settings.folder, overwrite=settings.overwrite, resume=settings.resume):
        return _train(settings)


def _train(settings: Settings) -> int:
    console = Console()
    what = f"{generations(settings.generations)} of {settings.population} members, into {settings.folder}"
    say(console, f"training {settings.model} on handwritten digits, {what}")
    # Only here, so that help, refusals and the line above do not wait for Flax and scikit-learn.
    from eggroll.recipes.digits import SHOWN
    from eggroll.recipes.digits import train as run
    from eggroll.training.progress import Meter
    from eggroll.training.stopping import StopRequest

    # The whole run, so that a signal while the model is built or the results are written waits for the folder.
    with StopRequest() as stop, Meter(console, settings.generations, settings.model, SHOWN) as meter:
        result = run(settings, show=meter.update, asked_to_stop=stop.was_asked)
    say(
        console,
        f"test accuracy {result.before:.1%} before, {result.after:.1%} after {generations(result.generations)} "
        f"in {result.seconds:.1f} s, compilation included"
        + (f" (resumed after {result.resumed})" if result.resumed else ""),
    )
    return say_end(console, result.ended, result.folder.iterdir())
