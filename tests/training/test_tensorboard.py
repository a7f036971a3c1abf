"""TensorBoard's files hold every number, hide what a resumed run makes again, and never end a run."""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from eggroll.training import Saving, read_metrics
from eggroll.training.errors import RunError
from eggroll.training.progress import TensorBoard
from tests.training.problems import run

Event: Any = event_pb2.Event  # made when the file is imported: unknown to type checkers


def record(generation: int, **more: Any) -> dict[str, Any]:
    return {"generation": generation, "fitness_mean": -1.0 / generation, **more}


def events(path: Path) -> list[Any]:
    """All of a file, read as the format says: length, checksum, event, checksum."""
    found, data, start = [], path.read_bytes(), 0
    while start < len(data):
        length = int.from_bytes(data[start : start + 8], "little")
        found.append(Event.FromString(data[start + 12 : start + 12 + length]))
        start += length + 16
    return found


def scalars(folder: Path) -> dict[tuple[int, str], float]:
    """Value by step and name, as TensorBoard shows them: a session's start hides what was at its step or later."""
    shown: dict[tuple[int, str], float] = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns):
        for event in events(path):
            if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
                shown = {place: value for place, value in shown.items() if place[0] < event.step}
            for value in event.summary.value:
                assert (event.step, value.tag) not in shown, "twice"
                shown[event.step, value.tag] = value.simple_value
    return shown


def test_tensorboard_has_every_number(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        for generation in (1, 2):
            board.log(record(generation, test_accuracy=0.5 * generation, missing=None))
        board.sync()
        assert len(scalars(tmp_path)) == 4  # while the run goes on
    assert scalars(tmp_path) == {
        (1, "fitness_mean"): -1.0,
        (1, "test_accuracy"): 0.5,
        (2, "fitness_mean"): -0.5,
        (2, "test_accuracy"): 1.0,
    }


def test_a_resumed_run_hides_what_it_makes_again(tmp_path: Path) -> None:
    saving, shown = Saving(every=4, tensorboard=True), []

    class Killed(BaseException):
        pass

    def show(line: dict[str, Any]) -> None:
        shown.append(line)
        if len(shown) == 7:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, 9, saving=saving, show=show)
    result = run(tmp_path, 9, saving=saving, resume=True)
    assert result.resumed == 4
    found = scalars(tmp_path)
    for line in read_metrics(tmp_path):
        assert found[line["generation"], "fitness_mean"] == pytest.approx(line["fitness_mean"])
    assert {step for step, _ in found} == set(range(1, 10))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # a file of its own for each part


def test_a_disk_that_does_not_take_them_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, written = RecordWriter.write, []

    def full(self: Any, data: bytes) -> None:
        written.append(data)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    with caplog.at_level(logging.WARNING, "eggroll"):
        result = run(tmp_path, 9, saving=Saving(every=2, tensorboard=True))
    assert result.ended == "finished" and len(read_metrics(tmp_path)) == 9
    warnings = [line for line in caplog.messages if "goes on without TensorBoard's files" in line]
    assert len(warnings) == 1 and "No space left" in warnings[0]
    assert {step for step, _ in scalars(tmp_path)} == {1, 2}


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RunError, match=r'pip install "eggroll-jax\[tensorboard\]"'):
        TensorBoard(tmp_path)
