"""What a generation measured, as JSON can hold it, and whether the names that a run waits for are among it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eggroll.training.errors import RunError
from eggroll.training.metrics import Record
from eggroll.training.stopping import EarlyStopping


def plain(x: Any) -> Any:
    """A number of the metrics as JSON can hold it: integers as they are, others with six digits."""
    return int(x) if np.issubdtype(np.asarray(x).dtype, np.integer) else float(f"{float(x):.6g}")


def measured(values: Mapping[str, Any], record: Record) -> Record:
    """What an evaluation hook returned, as JSON can hold it."""
    taken = sorted(values.keys() & (record.keys() | {"members_per_second", "seconds"}))
    if taken:
        raise RunError(
            f"got {', '.join(taken)} from the evaluation hook; these names are the loop's own. Choose others."
        )
    return {name: x if isinstance(x, str | bool | int | None) else float(x) for name, x in values.items()}


def check_measured(record: Record, score: str, stopping: EarlyStopping | None) -> None:
    """Raises at the first measurement for names that it lacks: they would be waited for in vain."""
    wanted = {"the score of saving=Saving(score=...)": score}
    if stopping is not None:
        wanted["the metric of early_stopping=EarlyStopping(...)"] = stopping.metric
    for what, name in wanted.items():
        if name not in record:
            raise RunError(
                f"got {name!r} as {what}, which the first measurement lacks; one of {', '.join(sorted(record))} is "
                "required."
            )
