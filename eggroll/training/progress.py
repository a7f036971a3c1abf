"""How a run shows that it is getting on: a bar on a terminal, a line now and then elsewhere, and what others draw.

Those are TensorBoard, by its files, and trackers, by their own packages.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from eggroll.training.errors import RunError
from eggroll.training.folder.disk import not_writable, own_folder
from eggroll.training.folder.files import write_text
from eggroll.training.folder.layout import REPORTS, TENSORBOARD
from eggroll.training.metrics import Record
from eggroll.training.options import check_told

LOGGER = logging.getLogger("eggroll")

LINES = 10  # printed over a run where there is no terminal
SILENCE = 60.0  # seconds there without a line, at most, if a generation takes no longer
WINDOW = 10  # generations that the speed and the time left are averaged over


@dataclass(frozen=True)
class Shown:
    """What is shown of a record.

    Attributes:
        values: name in the record → how to print it; one that a record lacks stays what it was.
        speed: name of a number per second, averaged over the last generations.
        unit: what it counts.
        goal: name of a number in the record, and at what it ends the run; None: nothing does, but the generations.
    """

    values: Mapping[str, str]
    speed: str = "members_per_second"
    unit: str = "members"
    goal: tuple[str, int] | None = None


class Meter:
    """Shows the records of a run of `generations`, as a context around it.

    Args:
        console: where to.
        generations: how many records to expect.
        label: what runs.
        shown: what is shown of a record.

    Example:
        >>> import sys
        >>> console = Console(file=sys.stdout)
        >>> with Meter(console, 2, "training", Shown({"loss": "loss {:.2f}"})) as meter:
        ...     meter.update({"generation": 0})
        ...     meter.update({"generation": 1, "loss": 0.5, "members_per_second": 10.0})
        generation 0/2  compiling
        generation 1/2  loss 0.50
    """

    def __init__(self, console: Console, generations: int, label: str, shown: Shown) -> None:
        self._console, self._generations, self._shown = console, generations, shown
        self._records, self._said = 0, 0.0
        self._values: dict[str, str] = {}
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._passed: deque[tuple[float, float]] = deque(maxlen=WINDOW + 1)  # (clock, share of the run)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[place]}"),
            TextColumn("{task.fields[status]}"),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self._task = self._bar.add_task(label, total=generations, place="", status="")

    @classmethod
    def plain(cls, generations: int, done: int) -> Meter:
        """One on stderr that shows the mean fitness of a run that goes on after `done` generations."""
        meter = cls(Console(stderr=True), generations, "training", Shown({"fitness_mean": "fitness {:.4g}"}))
        meter.update({"generation": done})
        return meter

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:  # elsewhere it would leave an empty line
            self._bar.stop()

    def update(self, record: Record) -> None:
        """Shows one line of the metrics; the first one, of the generation that the run starts at, starts the bar."""
        generation = record["generation"]
        for name, text in self._shown.values.items():
            if record.get(name) is not None:
                self._values[name] = text.format(record[name])
        first = not self._records
        done, total = self._done(record)
        if self._records > 1:  # the first generation's time is compilation
            self._recent.append(record[self._shown.speed])
        if not first:
            self._passed.append((time.monotonic(), done / total))
        self._records += 1
        status = self.status()
        if first:
            status = "  ".join(filter(None, [status, _resuming(generation), "compiling"]))
            self._bar.start()
        place = f"{generation}/{self._generations}"
        if self._shown.goal is not None and total != self._generations:
            place = f"generation {generation}, {self._shown.goal[0]} {done:,}/{total:,}"
        self._bar.update(self._task, completed=done, total=total, place=place, status=status)
        every = max(1, self._generations // LINES)
        due = first or generation % every == 0 or generation == self._generations
        if not self._console.is_terminal and (due or time.monotonic() > self._said + SILENCE):
            self._said = time.monotonic()
            where = place if place.startswith("generation") else f"generation {place}"
            self._console.print(f"{where}  {status}", highlight=False, markup=False, soft_wrap=True)

    def _done(self, record: Record) -> tuple[int, int]:
        """How much of what is done, of whatever will end the run first as it looks now."""
        generation = record["generation"]
        if self._shown.goal is None:
            return generation, self._generations
        name, most = self._shown.goal
        spent = record.get(name, 0)
        if spent * self._generations < generation * most:
            return generation, self._generations
        return min(spent, most), most

    def status(self) -> str:
        """The latest values, the recent speed and the time left, as far as they are known."""
        parts = [self._values[name] for name in self._shown.values if name in self._values]
        if self._recent:
            speed = len(self._recent) / sum(1 / x for x in self._recent)
            parts.append(f"{speed:,.0f} {self._shown.unit}/s")
        return "  ".join([*parts, *self._left()])

    def _left(self) -> list[str]:
        """How long the rest takes at the pace of the last generations."""
        if len(self._passed) < 2:
            return []
        (began, share), (now, reached) = self._passed[0], self._passed[-1]
        if not share < reached < 1:
            return []
        return [f"{timedelta(seconds=round((now - began) / (reached - share) * (1 - reached)))} left"]


def _resuming(generation: int) -> str:
    return f"resuming after {generation} generation{'s' if generation > 1 else ''}" if generation else ""


class TensorBoard:
    """Writes every number of a record as a scalar, for `tensorboard --logdir FOLDER`.

    Without the thread of tensorboardX's `SummaryWriter`, which blocks its caller for ever once a write has failed.
    After such a failure nothing more is written, and a warning says so.

    Args:
        folder: the run folder; the files go to its `tensorboard/`.
        after: generations already made; what TensorBoard has of later ones is hidden.

    Raises:
        RunError: the package tensorboardX is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, after: int = 0) -> None:
        check_told(True, ())
        from tensorboardX.record_writer import RecordWriter

        self._path = folder / TENSORBOARD
        self._writer: Any = None
        try:
            # TensorBoard reads files in the order of their names; none is written to twice.
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
            path = own_folder(self._path) / name
            path.open("xb").close()  # not where a link may lead
            self._writer = RecordWriter(str(path))
        except OSError as why:
            raise not_writable(folder, why) from why
        self._write(file_version="brain.Event:2")
        if after:  # TensorBoard forgets what it has of this step and later ones
            log = _proto("event").SessionLog
            start = log(status=log.START)
            self._write(step=after + 1, session_log=start)

    def log(self, record: Record) -> None:
        """Adds the numbers of a record at its generation."""
        summary = _proto("summary").Summary
        values = [summary.Value(tag=name, simple_value=x) for name, x in _numbers(record).items()]
        self._write(step=record["generation"], summary=summary(value=values))

    def sync(self) -> None:
        """Hands what was logged to the operating system."""
        self._try(lambda: self._writer.flush())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._try(lambda: self._writer.close())
        self._writer = None

    def _write(self, **event: object) -> None:
        made = _proto("event").Event(wall_time=time.time(), **event)
        self._try(lambda: self._writer.write(made.SerializeToString()))

    def _try(self, write: Callable[[], object]) -> None:
        if self._writer is None:
            return
        try:
            write()
        except OSError as why:
            with suppress(OSError):
                self._writer.close()
            self._writer = None
            LOGGER.warning("the run goes on without TensorBoard's files: cannot write to '%s' (%s)", self._path, why)


class Reported:
    """Tells every number of a record to Weights & Biases or trackio, by its own package, with its own settings.

    The project is that of `WANDB_PROJECT` or `TRACKIO_PROJECT`, or `eggroll`; a run that goes on is the same one there.
    What fails once a run has begun ends no run, and a warning says so.

    Args:
        package: `"wandb"` or `"trackio"`.
        folder: the run folder, of which it has the name.
        settings: of the run.
        after: generations already made.

    Raises:
        RunError: the package is not installed, or lets no run begin.
    """

    def __init__(self, package: str, folder: Path, settings: Mapping[str, object], *, after: int = 0) -> None:
        check_told(False, (package,))
        self._package, self._run, file = package, None, folder / REPORTS
        own = file.read_text(encoding="utf-8").strip() if after and file.is_file() else os.urandom(4).hex()
        write_text(file, own + "\n")
        options: dict[str, Any] = {"name": f"{folder.resolve().name}-{own}", "resume": "allow"}
        options |= {"project": os.environ.get(f"{package.upper()}_PROJECT", "eggroll")}
        options |= {"id": own, "dir": str(folder)} if package == "wandb" else {}
        try:
            self._run = importlib.import_module(package).init(config=dict(settings), **options)
        except Exception as why:  # each package's own
            raise RunError(
                f"got --report-to {package}, which lets no run begin ({why}). Log in, work offline, or leave it out."
            ) from why

    def log(self, record: Record) -> None:
        """Tells the numbers of a record at its generation."""
        self._try(lambda run: run.log(_numbers(record), step=record["generation"]))

    def sync(self) -> None:
        """Nothing: the package sends when it likes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._try(lambda run: run.finish())

    def _try(self, tell: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            tell(self._run)
        except Exception as why:  # a network, or what lies behind it
            self._run = None
            LOGGER.warning("the run goes on without reports to %s: %s", self._package, why)


def _numbers(record: Record) -> Record:
    """All but the generation."""
    return {name: x for name, x in record.items() if isinstance(x, int | float) and name != "generation"}


def _proto(file: str) -> ModuleType:
    """Classes that are made when their file is imported: unknown to type checkers."""
    return importlib.import_module(f"tensorboardX.proto.{file}_pb2")
