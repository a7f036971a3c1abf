"""Long runs: the training loop, checkpoints, the ledger, and many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll.lazy import lazy

if TYPE_CHECKING:
    from eggroll.training.checkpoints.manager import Checkpoint, Checkpoints
    from eggroll.training.errors import RunError
    from eggroll.training.ledger.rebuilding import replay
    from eggroll.training.loop import fit
    from eggroll.training.metrics import read_metrics
    from eggroll.training.optimizers import named, schedule
    from eggroll.training.progress import Meter, Shown
    from eggroll.training.steps import Compiled, Scored, Step
    from eggroll.training.stopping import EarlyStopping, Result
    from eggroll.training.store import Saving

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Compiled",
    "EarlyStopping",
    "Meter",
    "Result",
    "RunError",
    "Saving",
    "Scored",
    "Shown",
    "Step",
    "fit",
    "named",
    "read_metrics",
    "replay",
    "schedule",
]

# Names and the files that they come from, which are loaded when they are asked for.
_FILES = {
    "Checkpoint": "eggroll.training.checkpoints.manager",
    "Checkpoints": "eggroll.training.checkpoints.manager",
    "Compiled": "eggroll.training.steps",
    "EarlyStopping": "eggroll.training.stopping",
    "Meter": "eggroll.training.progress",
    "Result": "eggroll.training.stopping",
    "RunError": "eggroll.training.errors",
    "Saving": "eggroll.training.store",
    "Scored": "eggroll.training.steps",
    "Shown": "eggroll.training.progress",
    "Step": "eggroll.training.steps",
    "fit": "eggroll.training.loop",
    "named": "eggroll.training.optimizers",
    "read_metrics": "eggroll.training.metrics",
    "replay": "eggroll.training.ledger.rebuilding",
    "schedule": "eggroll.training.optimizers",
}

if not TYPE_CHECKING:  # a checker would take any name for one of the package
    __getattr__, __dir__ = lazy(__name__, _FILES)
