"""Where a run stands, what ends it early (signals, a metric that stands still), and what it came to."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType, TracebackType

import jax
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.engine.checks import as_number
from eggroll.strategy.state import State, summary
from eggroll.training.data import Position
from eggroll.training.errors import RunError
from eggroll.training.metrics import Record

LOGGER = logging.getLogger("eggroll")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2
STOPPING = b"\nstopping after this generation (Ctrl-C again: at once; --resume then goes on from the last checkpoint)\n"


class StopRequest:
    """A context in which the first SIGINT or SIGTERM asks for an end, and a second SIGINT raises `KeyboardInterrupt`.

    Outside the main thread, where Python allows no signal handlers, nothing is caught.

    Attributes:
        asked: whether a signal came.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> stop.asked
        True
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def was_asked(self) -> bool:
        """Whether a signal came."""
        return self.asked

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGINT and os.isatty(STDERR):
            # Not print: a handler may run in the middle of another print.
            os.write(STDERR, STOPPING)


@dataclass(frozen=True)
class EarlyStopping:
    """Ends a run whose metric no longer improves.

    Args:
        metric: its name in the record of a generation, such as `"fitness_mean"` or what an evaluation hook returns.
        patience: records with that metric in a row that may bring no improvement, at least 1.
        min_delta: how much better than the best so far counts as an improvement. Default 0: anything better.
        higher: whether more is better. Default True.

    Raises:
        ValueError: a patience below 1, or a negative `min_delta`.

    Example:
        >>> stopping = EarlyStopping("test_accuracy", patience=2)
        >>> seen = Seen()
        >>> [seen.hopeless(stopping, {"test_accuracy": x}) for x in (0.5, 0.6, 0.6, 0.55)]
        [False, False, False, True]
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    higher: bool = True

    def __post_init__(self) -> None:
        if self.patience < 1 or not self.min_delta >= 0:
            raise ValueError(
                f"got patience={self.patience} and min_delta={self.min_delta}; a patience of at least 1 and a "
                "min_delta of at least 0 are required."
            )


@dataclass
class Seen:
    """What early stopping remembers: the best value so far, and the records since."""

    best: float | None = None
    since: int = 0

    def hopeless(self, stopping: EarlyStopping, record: Record) -> bool:
        """Takes note of a record; whether patience has run out. A value that is not finite is no improvement."""
        if stopping.metric not in record:
            return False
        value: float | None = record[stopping.metric]
        if (
            value is not None
            and math.isfinite(value)
            and (self.best is None or self._gain(stopping, value) > stopping.min_delta)
        ):
            self.best, self.since = float(value), 0
        else:
            self.since += 1
        return self.since >= stopping.patience

    def _gain(self, stopping: EarlyStopping, value: float) -> float:
        assert self.best is not None
        return value - self.best if stopping.higher else self.best - value


@dataclass(frozen=True)
class Place:
    """Where a run stands between two generations.

    Attributes:
        state: the strategy's.
        carry: the model's own.
        data: where the data are.
        seconds: that all generations took so far.
        seen: what early stopping remembers.
        score: the newest value of what the best checkpoints are kept by.
    """

    state: State
    carry: PyTree
    data: Position = None
    seconds: float = 0.0
    seen: Seen = field(default_factory=Seen)
    score: float | None = None

    @classmethod
    def recorded(cls, state: State, carry: PyTree, record: Record, begun: Place) -> Place:
        """What a checkpoint's record says; raises KeyError, TypeError or ValueError for one that no run writes."""
        told = cls(state, carry, record["data"], record["seconds"], Seen(**record["seen"]), record["score"])
        made, counts = told.generation - begun.generation, [told.seen.since]
        numbers = [told.seconds, *(x for x in (told.score, told.seen.best) if x is not None)]
        if not all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in numbers) or told.seconds < 0:
            raise ValueError("seconds, score or best that are no such numbers")
        if not isinstance(told.data, dict):  # data without a state of their own: a batch a generation
            counts.append(told.data)
        if not all(type(x) is int and 0 <= x <= made for x in counts) or counts[1:] not in ([], [made]):
            raise ValueError("another number of measurements or batches than there were")
        return told

    @property
    def generation(self) -> int:
        """Updates made."""
        return int(self.state.generation)


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        state: the strategy's state; `state.params` are the trained parameters.
        carry: the model's own state.
        ended: `"finished"`, `"interrupted"`, `"interrupted at once"` (by a second Ctrl-C: nothing was saved any more),
            `"out of time"`, `"out of data"`, `"stopped early"`, or what went wrong.
        seconds: of all generations, also those before a resumption, compilation included.
        resumed: the generation that the run went on from; 0 for one from the start.
    """

    state: State
    carry: PyTree
    ended: str
    seconds: float
    resumed: int

    def __repr__(self) -> str:
        how = f"ended={self.ended!r}, seconds={self.seconds:.3g}, resumed={self.resumed}"
        carried = f", carry={summary(self.carry)}" if jax.tree.leaves(self.carry) else ""
        return f"Result({how}, state={self.state!r}{carried})"

    @property
    def generation(self) -> int:
        """Updates made."""
        return int(self.state.generation)


def plain(x: jax.Array | float) -> int | float:
    """A number of the metrics as JSON can hold it: integers and arrays of float64 as they are, others in six digits."""
    if np.issubdtype(np.asarray(x).dtype, np.integer):
        return int(x)
    # Six digits of a large fitness would hide all that changes in it.
    return float(x) if getattr(x, "dtype", None) == np.float64 else float(f"{float(x):.6g}")


def measured(values: Mapping[str, float | None], record: Record) -> Record:
    """What an evaluation hook returned, as JSON can hold it.

    Raises:
        TypeError: no mapping from names to numbers, flags or None.
        RunError: names that are the loop's own.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise TypeError(
            f"got {type(values).__name__} from evaluate(state, carry); a dictionary of numbers by name is required: "
            "return {'test_loss': 0.5}, or {} where there is nothing to measure."
        )
    taken = sorted(values.keys() & (record.keys() | {"members_per_second", "seconds"}))
    if taken:
        raise RunError(
            f"got {', '.join(taken)} from the evaluation hook; these names are the loop's own. Choose others."
        )
    what = "evaluate(state, carry) as {!r}"
    found = {
        name: x if isinstance(x, bool | int | None) else as_number(what.format(name), x, " Average over data.")
        for name, x in values.items()
    }
    lost = [name for name, x in found.items() if isinstance(x, float) and not math.isfinite(x)]
    if lost:
        LOGGER.warning("evaluate(state, carry) measured %s: not finite, null in the record", ", ".join(lost))
    return found


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
