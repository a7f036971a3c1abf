"""`eggroll train`: a network on handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Console

from eggroll.commands.common import generations, metered, say, say_end, settings_options
from eggroll.recipes.settings import DEFAULTS, Settings, settings_for
from eggroll.training.folder.layout import claimed


@dataclass(frozen=True)
class Train:
    """Train a network on handwritten digits by evolution and write a run folder.

    The folder receives metrics.jsonl, curve.png, parameters.npz, config.json, checkpoints, and a ledger from which
    `eggroll replay` rebuilds the parameters of any generation. Ctrl-C ends the run early and writes what there is;
    --resume goes on with it.
    """

    options: Annotated[dict[str, Any], settings_options(Settings, DEFAULTS)]


def train(command: Train) -> int:
    """Runs the command; the exit status."""
    settings = settings_for(**command.options)
    with claimed(settings.folder, overwrite=settings.overwrite, resume=settings.resume):
        return _train(settings)


def _train(settings: Settings) -> int:
    console = Console()
    what = f"{generations(settings.generations)} of {settings.population} members, into {settings.folder}"
    say(console, f"training {settings.model} on handwritten digits, {what}")
    # Only here, so that help, refusals and the line above do not wait for Flax and scikit-learn.
    from eggroll.recipes.digits import SHOWN
    from eggroll.recipes.digits import train as run

    # The whole run, so that a signal while the model is built or the results are written waits for the folder.
    result = metered(console, settings, settings.model, SHOWN, run)
    say(
        console,
        f"test accuracy {result.before:.1%} before, {result.after:.1%} after {generations(result.generations)} "
        f"in {result.seconds:.1f} s, compilation included"
        + (f" (resumed after {result.resumed})" if result.resumed else ""),
    )
    return say_end(console, result.ended, result.folder.iterdir())
