"""What commands share: exit states, options of every run, and how a run's end is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from rich.console import Console

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130
AT_ONCE = "interrupted at once"
WITH_RESULTS = {"finished": 0, "out of time": 0, "stopped early": 0, "interrupted": INTERRUPTED, AT_ONCE: INTERRUPTED}
WIDE = 130  # columns of a table that no terminal limits

Seconds = Annotated[float | None, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="(default: none)")]


@dataclass(frozen=True)
class RunOptions:
    """Where and how often a run is written, and what ends it."""

    overwrite: bool = False
    """Replace a run in the folder."""
    resume: bool = False
    """Go on with the run in the folder, from its newest whole checkpoint; start if there is none."""
    force: bool = False
    """Resume although settings changed."""
    checkpoint_every: int = 50
    """Generations between two checkpoints; there is one at the end, too."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_best: int = 1
    """Checkpoints of the highest held-out score that are kept besides."""
    patience: int = 0
    """Measurements of the held-out score that may bring nothing better before the run ends; 0: it goes on."""
    time_limit: Seconds = None
    """Save and end after this time; --resume goes on."""
    tensorboard: bool = False
    """Write TensorBoard's files, too (needs the extra `tensorboard`)."""


def given(command: Any) -> dict[str, Any]:
    """The options of a command by name, those of its parts among them."""
    found: dict[str, Any] = {}
    for field in fields(command):
        value = getattr(command, field.name)
        found |= given(value) if is_dataclass(value) else {field.name: value}
    return found


def default_by(defaults: Mapping[str, Any], name: str, metavar: str) -> Any:
    """Help for an option whose default depends on another option, such as the model."""
    values = {choice: getattr(settings, name) for choice, settings in defaults.items()}
    same = len(set(values.values())) == 1
    text = str(next(iter(values.values()))) if same else ", ".join(f"{m} {v}" for m, v in values.items())
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


def choices(literal: Any) -> str:
    """The values of a `Literal`, as help shows them."""
    return "{" + ",".join(get_args(literal)) + "}"


def quiet_transformers() -> None:
    """Keeps transformers from saying that PyTorch is missing, which nothing here needs."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def generations(count: int) -> str:
    """A number of generations, in words."""
    return f"{count} generation" if count == 1 else f"{count} generations"


def say(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def say_end(console: Console, ended: str, files: Iterable[Path]) -> int:
    """Prints what a run left and why it ended, if that is not its last generation; the exit status."""
    for file in sorted(files):
        say(console, f"  {file}")
    if ended != "finished":
        more = "; --resume goes on from the last checkpoint" if ended == AT_ONCE else ""
        print(f"eggroll: {ended}; what there is was written{more}", file=sys.stderr)
    return WITH_RESULTS.get(ended, FAILED)
