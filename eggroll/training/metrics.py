"""The metrics of a run: a line of JSON per generation, and TensorBoard's files if asked for."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any, Self

from eggroll.training.errors import RunError
from eggroll.training.files import write_text
from eggroll.training.folder import METRICS, TENSORBOARD, not_writable

Record = dict[str, Any]


class MetricsFile:
    """Appends records to `metrics.jsonl`, one line per generation and none twice.

    Args:
        folder: the run folder.
        after: generations already made; lines of later ones, which a killed run left, and a line cut short are removed.

    Raises:
        RunError: the file cannot be written, or has no line of one of these generations.
    """

    def __init__(self, folder: Path, *, after: int = 0) -> None:
        self._path = folder / METRICS
        try:
            write_text(self._path, "".join(self._lines(after)) if after else "")
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as why:
            raise not_writable(folder, why) from why

    def _lines(self, after: int) -> list[str]:
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        lines = text.splitlines(keepends=True)[:after]
        whole = [line for line in lines if line.endswith("\n")]
        if [_generation(line) for line in whole] != list(range(1, after + 1)):
            raise RunError(
                f"'{self._path}' has not one line for each of the {after} generations that its checkpoint has made: it "
                "was changed by hand, or belongs to another run. Restore it, or start anew with --overwrite."
            )
        return whole

    def log(self, record: Record) -> None:
        """Adds a line; the operating system has it when this returns. JSON has no NaN: such numbers become null."""
        plain = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in record.items()}
        try:
            self._file.write(json.dumps(plain, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as why:
            raise not_writable(self._path.parent, why) from why

    def sync(self) -> None:
        """Waits until what was logged is on disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # `log` has told what could not be written
            self._file.close()


def _generation(line: str) -> Any:
    try:
        return json.loads(line)["generation"]
    except (ValueError, KeyError, TypeError):
        return None


def read_metrics(folder: Path | str) -> list[Record]:
    """The run's metrics, one dictionary per generation; a last line that is still being written is left out.

    Args:
        folder: a run folder.

    Raises:
        FileNotFoundError: it has no metrics.
    """
    text = (Path(folder) / METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class TensorBoard:
    """Writes every number of a record as a scalar, for `tensorboard --logdir FOLDER`.

    Args:
        folder: the run folder; the files go to its `tensorboard/`.
        after: generations already made; what TensorBoard has of later ones is hidden.

    Raises:
        RunError: the package tensorboardX is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, after: int = 0) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as why:
            raise RunError(
                'TensorBoard files need the package tensorboardX: pip install "eggroll-jax[tensorboard]".'
            ) from why
        try:
            self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=after + 1 if after else None)
        except OSError as why:
            raise not_writable(folder, why) from why

    def log(self, record: Record) -> None:
        """Adds the numbers of a record at its generation."""
        for name, value in record.items():
            if isinstance(value, int | float) and name != "generation":
                self._writer.add_scalar(name, value, record["generation"])

    def sync(self) -> None:
        """Hands what was logged to the operating system."""
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
