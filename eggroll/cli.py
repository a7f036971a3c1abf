"""The command line: `eggroll train`, `explain`, `replay` and `ledger`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from rich.console import Console

from eggroll.recipes.settings import DEFAULTS, Distribution, Model, Settings, SettingsError, Shaping, settings_for
from eggroll.training.errors import RunError
from eggroll.training.folder import claim

DESCRIPTION = "Train neural networks without backpropagation. `eggroll --version` prints the version."
FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130
WIDE = 130  # columns of a table that no terminal limits


def _by_model(name: str, metavar: str) -> Any:
    """Help for an option whose default depends on the model."""
    values = {model: getattr(settings, name) for model, settings in DEFAULTS.items()}
    same = len(set(values.values())) == 1
    text = str(next(iter(values.values()))) if same else ", ".join(f"{m} {v}" for m, v in values.items())
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


def _choices(literal: Any) -> str:
    return "{" + ",".join(get_args(literal)) + "}"


@dataclass(frozen=True)
class Train:
    """Train a network on handwritten digits by evolution and write a run folder.

    The folder receives metrics.jsonl, curve.png, parameters.npz, config.json, checkpoints, and a ledger from which
    `eggroll replay` rebuilds the parameters of any generation. Ctrl-C ends the run early and writes what there is;
    --resume goes on with it.
    """

    model: Model = Settings.model
    """The network: an ordinary Flax NNX module."""
    population: Annotated[int | None, _by_model("population", "INT")] = None
    """Members in a generation; an even number."""
    rank: Annotated[int | None, _by_model("rank", "INT")] = None
    """Columns of each noise factor."""
    sigma: Annotated[float | None, _by_model("sigma", "FLOAT")] = None
    """Noise scale, in the units of the weights."""
    generations: Annotated[int | None, _by_model("generations", "INT")] = None
    """Number of updates."""
    learning_rate: Annotated[float | None, _by_model("learning_rate", "FLOAT")] = None
    """Adam's learning rate at the start; it falls along a cosine."""
    batch_size: Annotated[int | None, _by_model("batch_size", "INT")] = None
    """Images in a generation's minibatch, the same for all members."""
    distribution: Annotated[Distribution | None, _by_model("distribution", _choices(Distribution))] = None
    """Distribution of the noise."""
    shaping: Annotated[Shaping | None, _by_model("shaping", _choices(Shaping))] = None
    """How fitness becomes the weight of a member."""
    seed: int = Settings.seed
    """Decides initial parameters, noise and the order of the data."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/digits-MODEL)")] = None
    """Run folder."""
    overwrite: bool = False
    """Replace a run in the folder."""
    resume: bool = False
    """Go on with the run in the folder, from its newest whole checkpoint; start if there is none."""
    force: bool = False
    """Resume although settings changed."""
    checkpoint_every: int = Settings.checkpoint_every
    """Generations between two checkpoints; there is one at the end, too."""
    keep: int = Settings.keep
    """Newest checkpoints that are kept."""
    keep_best: int = Settings.keep_best
    """Checkpoints of the highest test accuracy that are kept besides."""
    patience: int = Settings.patience
    """Measurements of the test accuracy that may bring nothing better before the run ends; 0: it goes on."""
    time_limit: Annotated[float | None, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="(default: none)")] = None
    """Save and end after this time; --resume goes on."""
    tensorboard: bool = Settings.tensorboard
    """Write TensorBoard's files, too (needs the extra `tensorboard`)."""


@dataclass(frozen=True)
class Explain:
    """Print how a network uses each parameter, and what noise each gets."""

    model: Model = Settings.model
    """The network."""
    rank: int = Settings.rank
    """Columns of each noise factor."""


@dataclass(frozen=True)
class Replay:
    """Rebuild the parameters of any generation of a run from its ledger, without evaluating anything."""

    base: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="BASE")]]
    """Parameters that the run started from: an .npz file by path, or a run folder with initial.npz."""
    ledger: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="LEDGER")]]
    """The ledger, or a run folder with ledger.bin."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """The .npz file for the parameters."""
    generation: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the last)")] = None
    """Number of updates."""
    overwrite: bool = False
    """Replace the file."""


@dataclass(frozen=True)
class Ledger:
    """Check a ledger to its last byte, and say what it holds."""

    ledger: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="LEDGER")]]
    """The ledger, or a run folder with ledger.bin."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes `sys.argv`.

    Returns:
        The exit status: 0, 1 for a run that failed, 2 for bad usage, 130 for a run that was interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["-V"]):
        from eggroll.training.versions import package_version

        print(f"eggroll {package_version()}")
        return 0
    command = tyro.cli(
        Train | Explain | Replay | Ledger, prog="eggroll", description=DESCRIPTION, args=arguments or ["--help"]
    )
    try:
        return RUN[type(command)](command)
    except RunError as why:
        print(f"eggroll: {why}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("eggroll: interrupted", file=sys.stderr)
        return INTERRUPTED


def _train(command: Train) -> int:
    settings = settings_for(**asdict(command))
    claim(settings.folder, overwrite=settings.overwrite, resume=settings.resume)
    console = Console()
    console.print(
        f"training {settings.model} on handwritten digits, {_generations(settings.generations)} of "
        f"{settings.population} members, into {settings.folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    # Only here, so that help, refusals and the line above do not wait for Flax and scikit-learn.
    from eggroll.recipes.digits import train
    from eggroll.training.progress import Meter
    from eggroll.training.stopping import StopRequest

    # The whole run, so that a signal while the model is built or the results are written waits for the folder.
    with StopRequest() as stop, Meter(console, settings.generations, settings.model) as meter:
        result = train(settings, show=meter.update, asked_to_stop=stop.was_asked)
    console.print(
        f"test accuracy {result.before:.1%} before, {result.after:.1%} after {_generations(result.generations)} "
        f"in {result.seconds:.1f} s, compilation included"
        + (f" (resumed after {result.resumed})" if result.resumed else ""),
        highlight=False,
        soft_wrap=True,
    )
    for file in sorted(result.folder.iterdir()):
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    if result.ended == "finished":
        return 0
    print(f"eggroll: {result.ended}; what there is was written", file=sys.stderr)
    return {"interrupted": INTERRUPTED, "out of time": 0, "stopped early": 0}.get(result.ended, FAILED)


def _generations(count: int) -> str:
    return f"{count} generation" if count == 1 else f"{count} generations"


def _explain(command: Explain) -> int:
    import jax.numpy as jnp

    import eggroll.nnx
    from eggroll.recipes.models import SIDE, build

    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    try:
        model = build(command.model, seed=0)
        table = eggroll.nnx.explain(lambda model, x: model(x), model, jnp.ones((2, SIDE, SIDE)), rank=command.rank)
    except (TypeError, ValueError) as why:
        raise SettingsError(str(why)) from why
    console.print(table)
    return 0


def _replay(command: Replay) -> int:
    from eggroll.training.replay_command import replay_files

    print(replay_files(command.base, command.ledger, command.out, command.generation, command.overwrite))
    return 0


def _ledger(command: Ledger) -> int:
    from eggroll.training.replay_command import describe, verify

    print(describe(verify(command.ledger)))
    return 0


RUN: dict[type, Callable[[Any], int]] = {Train: _train, Explain: _explain, Replay: _replay, Ledger: _ledger}

if __name__ == "__main__":
    sys.exit(main())
