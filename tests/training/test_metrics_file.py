"""Metrics are always JSON, one line a generation, none twice."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from eggroll.training.errors import RunError
from eggroll.training.metrics import MetricsFile, read_metrics


def record(generation: int, **more: Any) -> dict[str, Any]:
    return {"generation": generation, "fitness_mean": -1.0 / generation, **more}


def write(folder: Path, first: int, last: int, *, after: int = 0) -> None:
    with MetricsFile(folder, after=after) as file:
        for generation in range(first, last + 1):
            file.log(record(generation))


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with MetricsFile(tmp_path) as file:
        file.log({"generation": 1, "fitness_mean": float("nan"), "fitness_best": float("inf"), "fitness_std": 0.5})
        assert read_metrics(tmp_path) == [
            {"generation": 1, "fitness_mean": None, "fitness_best": None, "fitness_std": 0.5}
        ]  # on disk although the run goes on


@pytest.mark.parametrize("cut", [b"", b'{"generation": 6', b'{"generation": 6}', b"\0\0\0", b"\xff\xfe\x80\n"])
def test_lines_beyond_the_checkpoint_go(cut: bytes, tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(cut)
    write(tmp_path, 4, 7, after=3)
    assert read_metrics(tmp_path) == [record(g) for g in range(1, 8)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("spoil", ["", "1 2", "1 3 2 4", "1 2 2 3 4", "2 3 4 5"])
def test_metrics_that_miss_a_generation_are_refused(spoil: str, tmp_path: Path) -> None:
    lines = "".join(f'{{"generation": {g}}}\n' for g in spoil.split())
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(RunError, match="has not one line for each of the 4 generations"):
        MetricsFile(tmp_path, after=4)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == lines


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    data = bytearray((tmp_path / "metrics.jsonl").read_bytes())
    data[60] = 0xFF  # no UTF-8
    (tmp_path / "metrics.jsonl").write_bytes(data)
    with pytest.raises(RunError, match="has not one line for each of the 4 generations"):
        MetricsFile(tmp_path, after=4)
    with pytest.raises(RunError, match=r"metrics\.jsonl' is damaged .*Restore it from a copy"):
        read_metrics(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == data


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"generation": 1}\n{"gener', encoding="utf-8")
    assert read_metrics(tmp_path) == [{"generation": 1}]


class Full:
    """A file on a disk without room."""

    def write(self, text: str) -> None:
        pass  # it stays in the buffer

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    close = flush


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsFile(tmp_path) as file:
        file.log(record(1))
        with monkeypatch.context() as patch:
            patch.setattr(file, "_file", Full())
            with pytest.raises(RunError, match=r"cannot write to .*No space left"):
                file.log(record(2))
    assert read_metrics(tmp_path) == [record(1)]


def test_a_quota_that_is_told_late_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with MetricsFile(tmp_path) as file, monkeypatch.context() as patch:
        file.log(record(1))
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"cannot write to .*Disk quota exceeded"):
            file.sync()
