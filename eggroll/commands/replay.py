"""`eggroll replay` and `eggroll ledger`: what a run's ledger holds, and what can be rebuilt from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from eggroll.commands.common import quiet_transformers
from eggroll.training.options import check_path


@dataclass(frozen=True)
class Replay:
    """Rebuild the parameters of any generation of a run from its ledger, without evaluating anything."""

    base: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="BASE")]]
    """What the run started from: an .npz file by path, a language model, or a run folder, which has or names it."""
    ledger: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="LEDGER")]]
    """The ledger, or a run folder with ledger.bin."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """The .npz file for the parameters; of a language model any other name is that of a Hugging Face folder."""
    generation: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the last)")] = None
    """Number of updates."""
    overwrite: bool = False
    """Replace the file or folder."""


@dataclass(frozen=True)
class Ledger:
    """Check a ledger to its last byte, and say what it holds."""

    ledger: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="LEDGER")]]
    """The ledger, or a run folder with ledger.bin."""


def replay(command: Replay) -> int:
    """Runs the command; the exit status."""
    for name in ("base", "ledger", "out"):
        check_path(name, getattr(command, name))
    from eggroll.training.ledger.replay_files import replay_files

    base, write = _base(command)
    print(replay_files(base, command.ledger, command.out, command.generation, command.overwrite, write))
    return 0


def _base(command: Replay) -> tuple[Any, Callable[[Path, Any], None] | None]:
    """The base as `replay_files` takes it, and how its parameters are written."""
    from eggroll.llm.finetuning.model_folders import base_model, check_apart, check_replaceable, load_base, write_model

    model = base_model(command.base)
    if model is None:
        return command.base, None
    quiet_transformers()
    from eggroll.llm.answers.decoding import split
    from eggroll.training.ledger.replay_files import verify

    as_folder = command.out.suffix != ".npz"
    if as_folder:
        for kept in (command.base, command.ledger):
            check_apart(command.out, kept)
        check_replaceable(command.out)
    language = load_base(model, verify(command.ledger))
    return split(language.model)[1], (lambda out, params: write_model(language, out, params)) if as_folder else None


def ledger(command: Ledger) -> int:
    """Runs the command; the exit status."""
    check_path("ledger", command.ledger)
    from eggroll.training.ledger.replay_files import describe, verify

    print(describe(verify(command.ledger)))
    return 0
