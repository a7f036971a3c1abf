"""The command line: `eggroll train`, `finetune`, `rl`, `evaluate`, `compare`, `explain`, `replay`, `doctor` ..."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from eggroll.commands.common import BAD_USAGE, INTERRUPTED
from eggroll.commands.compare import Compare, compare
from eggroll.commands.doctor import Doctor, doctor
from eggroll.commands.evaluate import Evaluate, evaluate
from eggroll.commands.explain import Explain, explain
from eggroll.commands.finetune import Finetune, finetune
from eggroll.commands.replay import Ledger, Replay, ledger, replay
from eggroll.commands.rl import Rl, RlEvaluate, RlList, RlRender, listed, render, rl
from eggroll.commands.rl import evaluate as rl_evaluate
from eggroll.commands.train import Train, train
from eggroll.training.errors import RunError, abridged, mended

DESCRIPTION = "Train neural networks without backpropagation. `eggroll --version` prints the version."
RUN: dict[type, Callable[[Any], int]] = {
    Train: train,
    Finetune: finetune,
    Evaluate: evaluate,
    Compare: compare,
    Explain: explain,
    Replay: replay,
    Ledger: ledger,
    Doctor: doctor,
    Rl: rl,
    RlEvaluate: rl_evaluate,
    RlRender: render,
    RlList: listed,
}
PARTS = {"rl": Rl, "rl evaluate": RlEvaluate, "rl render": RlRender, "rl list": RlList}
ALL: Any = Train | Finetune | Evaluate | Compare | Explain | Replay | Ledger | Doctor
for name, part in PARTS.items():
    ALL |= Annotated[part, tyro.conf.subcommand(name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; None takes `sys.argv`.

    Returns:
        The exit status: 0, 1 for a run that failed, 2 for bad usage, 130 for a run that was interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["-V"]):
        from eggroll.version import __version__

        print(f"eggroll {__version__}")
        return 0
    if " ".join(arguments[:2]) in PARTS and len(arguments) > 1:
        arguments[:2] = [" ".join(arguments[:2])]
    command = tyro.cli(
        ALL,
        prog="eggroll",
        description=DESCRIPTION,
        args=arguments or ["--help"],
    )
    try:
        return RUN[type(command)](command)
    except RunError as why:
        print(f"eggroll: {why}", file=sys.stderr)
        return BAD_USAGE
    except OSError as why:  # of a file that nothing above had a better word for
        place = "" if why.filename is None else f" at '{abridged(why.filename)}'"
        print(f"eggroll: the system refuses what is asked for{place} {mended(why, 'another one')}.", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("eggroll: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
