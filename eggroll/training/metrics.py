"""The metrics of a run: a line of JSON per generation."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from eggroll.engine.checks import is_huge
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import not_writable, open_to_read, own_handle, parse_json, read_json
from eggroll.training.folder.files import write_text
from eggroll.training.folder.integrity import note_growing
from eggroll.training.folder.layout import EVALUATION, METRICS

Record = dict[str, Any]
LOGGER = logging.getLogger("eggroll")
BASE = 1 << 30  # what a run counts is in two numbers, as JAX has no 64-bit integers by itself


def not_counted() -> np.ndarray:
    """What a step carries from generation to generation to count in, at the start."""
    return np.zeros(2, np.int32)


def counted_on(count: Any, more: int) -> np.ndarray:
    """The count after `more`."""
    return np.array(divmod(counted(count) + more, BASE), np.int32)


def counted(count: Any) -> int:
    """How many that is.

    Example:
        >>> counted(counted_on(counted_on(not_counted(), 2**31), 5)) - 2**31
        5
    """
    high, low = (int(x) for x in np.asarray(count))
    return high * BASE + low


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
            kept = self._lines(after) if after else ""
            write_text(self._path, kept)
            self._file = os.fdopen(own_handle(self._path, os.O_WRONLY | os.O_APPEND), "ab")
        except OSError as why:
            raise not_writable(folder, why) from why
        self._size, self._digest = len(kept.encode()), hashlib.sha256(kept.encode())
        self.sync()

    def _lines(self, after: int) -> str:
        """The lines that are kept. What lies behind them, whatever it is, goes."""
        lines = _whole_lines(self._path)[:after] if self._path.exists() else []
        if [_generation(line) for line in lines] != list(range(1, after + 1)):
            raise RunError(
                f"'{self._path}' has not one line for each of the {after} generations that its checkpoint has made: it "
                "was changed or damaged, or belongs to another run. Restore it, or start anew with --overwrite."
            )
        return "".join(line.decode() + "\n" for line in lines)

    def log(self, record: Record) -> None:
        """Adds a line; the operating system has it when this returns. JSON has no NaN: such numbers become null."""
        plain = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in record.items()}
        try:
            self._file.write(line := (json.dumps(plain, allow_nan=False) + "\n").encode())
            self._file.flush()
        except OSError as why:
            raise not_writable(self._path.parent, why) from why
        self._digest.update(line)
        self._size += len(line)

    def sync(self) -> None:
        """Waits until what was logged is on disk, and then its digest in the folder's manifest."""
        try:
            os.fsync(self._file.fileno())
            note_growing(self._path.parent, METRICS, self._size, self._digest.hexdigest())
        except OSError as why:  # quotas of network disks are told only here
            raise not_writable(self._path.parent, why) from why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # `log` has told what could not be written
            self._file.close()


def _whole_lines(path: Path) -> list[bytes]:
    """What comes behind the last end of a line is still being written, or was cut."""
    with open_to_read(path) as file:
        return file.read().split(b"\n")[:-1]


def _generation(line: bytes) -> int | None:
    """The generation that a line is of; None for a line that no run writes."""
    try:
        return _record(line)["generation"]
    except ValueError:
        return None


def _record(line: bytes) -> Record:
    """The numbers in a line by name; raises ValueError where there is anything else."""
    record = parse_json(line)
    if not isinstance(record, dict) or type(record.get("generation")) is not int:
        raise ValueError("a line that is no record of a generation")
    odd = [name for name, x in record.items() if isinstance(x, dict | list) or is_huge(x)]
    if odd:
        raise ValueError(
            f"the record of generation {record['generation']!r:.50} has neither number nor text as {odd[0]!r:.50}"
        )
    return record


def read_metrics(folder: Path | str) -> list[Record]:
    """The run's metrics, one dictionary per generation; a last line that is still being written is left out.

    Args:
        folder: a run folder.

    Raises:
        FileNotFoundError: it has no metrics.
        RunError: a line of them is damaged.
    """
    path = Path(folder) / METRICS
    lines = _whole_lines(path)
    try:
        return [_record(line) for line in lines]
    except ValueError as why:
        raise RunError(
            f"'{path}' is damaged ({why}): one JSON object in each line is required. Restore it from a copy."
        ) from why


def write_before(folder: Path, measured: Record) -> Record:
    """Keeps what was measured before the first generation, which has no line in `metrics.jsonl`.

    Args:
        folder: a run folder.
        measured: numbers by their names in the metrics.

    Returns:
        They as a record, of generation 0.

    Raises:
        RunError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_before(folder, {"test_accuracy": 0.1})
        {'generation': 0, 'test_accuracy': 0.1}
        >>> read_before(folder)
        {'test_accuracy': 0.1}
    """
    write_text(folder / EVALUATION, json.dumps({"before": measured}, indent=2) + "\n")
    return {"generation": 0, **measured}


def read_before(folder: Path) -> Record:
    """What a run has noted of before its first generation, a language model's by the names in its evaluation; or {}.

    Raises:
        RunError: the file is damaged.
    """
    if not (folder / EVALUATION).is_file():
        return {}
    found = read_json(folder / EVALUATION, "Remove it, and the value before training is left out.").get("before")
    return found if isinstance(found, dict) else {}


def count_lines(folder: Path) -> int:
    """How many generations the metrics of a run have, whatever their lines hold."""
    path = folder / METRICS
    return len(_whole_lines(path)) if path.exists() else 0
