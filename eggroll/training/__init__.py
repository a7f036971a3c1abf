"""Long runs: the training loop, checkpoints, the ledger, and many processes."""

from __future__ import annotations

import importlib
from typing import Any

# Names and the files that they come from, which are loaded when they are asked for.
_FILES = {
    "Checkpoint": "checkpoints",
    "Checkpoints": "checkpoints",
    "Compiled": "steps",
    "EarlyStopping": "stopping",
    "Meter": "progress",
    "Result": "result",
    "RunError": "errors",
    "Saving": "store",
    "Scored": "steps",
    "Shown": "progress",
    "Step": "steps",
    "fit": "loop",
    "named": "optimizers",
    "read_metrics": "metrics",
    "replay": "rebuilding",
    "schedule": "optimizers",
}
__all__ = sorted(_FILES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(importlib.import_module(f"eggroll.training.{_FILES[name]}"), name)
    raise AttributeError(f"module 'eggroll.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
