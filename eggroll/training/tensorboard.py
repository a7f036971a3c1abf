"""TensorBoard's files of a run. They are an extra: a disk that does not take them ends no run."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from eggroll.training.folder.layout import TENSORBOARD, not_writable
from eggroll.training.metrics import Record
from eggroll.training.options import check_tensorboard

LOGGER = logging.getLogger("eggroll")


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
        check_tensorboard()
        from tensorboardX.record_writer import RecordWriter

        self._path = folder / TENSORBOARD
        self._writer: Any = None
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names; none is written to twice.
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
            self._writer = RecordWriter(str(self._path / name))
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
        numbers = {name: x for name, x in record.items() if isinstance(x, int | float) and name != "generation"}
        values = [summary.Value(tag=name, simple_value=x) for name, x in numbers.items()]
        self._write(step=record["generation"], summary=summary(value=values))

    def sync(self) -> None:
        """Hands what was logged to the operating system."""
        self._try(lambda: self._writer.flush())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._try(lambda: self._writer.close())
        self._writer = None

    def _write(self, **event: Any) -> None:
        made = _proto("event").Event(wall_time=time.time(), **event)
        self._try(lambda: self._writer.write(made.SerializeToString()))

    def _try(self, write: Callable[[], Any]) -> None:
        if self._writer is None:
            return
        try:
            write()
        except OSError as why:
            with suppress(OSError):
                self._writer.close()
            self._writer = None
            LOGGER.warning("the run goes on without TensorBoard's files: cannot write to '%s' (%s)", self._path, why)


def _proto(file: str) -> Any:
    """Classes that are made when their file is imported: unknown to type checkers."""
    return importlib.import_module(f"tensorboardX.proto.{file}_pb2")
