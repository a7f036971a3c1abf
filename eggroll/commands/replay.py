"""`eggroll replay` and `eggroll ledger`: what a run's ledger holds, and what can be rebuilt from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


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


def replay(command: Replay) -> int:
    """Runs the command; the exit status."""
    from eggroll.training.replay_command import replay_files

    print(replay_files(command.base, command.ledger, command.out, command.generation, command.overwrite))
    return 0


def ledger(command: Ledger) -> int:
    """Runs the command; the exit status."""
    from eggroll.training.replay_command import describe, verify

    print(describe(verify(command.ledger)))
    return 0
