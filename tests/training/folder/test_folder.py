"""A run folder is claimed before anything slow happens, and cleared of nothing but a run's own files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import by_path, save_arrays
from eggroll.training.folder.files import write_text
from eggroll.training.folder.layout import MAGIC, claim, clear


@pytest.mark.parametrize("left", ["parameters.npz", "checkpoints/7/state", "metrics.jsonl", "ledger.bin"])
def test_a_run_is_refused(left: str, tmp_path: Path) -> None:
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("a run", encoding="utf-8")
    with pytest.raises(RunError, match=r"holds a run; go on with it with --resume"):
        claim(tmp_path)
    for way in ("overwrite", "resume"):
        claim(tmp_path, **{way: True})
    assert (tmp_path / left).exists()  # nothing is removed before the run starts


def test_a_run_that_saved_nothing_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "ledger.bin").write_bytes(MAGIC)
    claim(tmp_path)


@pytest.mark.parametrize("way", ["", "overwrite", "resume"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_models_folder_is_no_run_folder(name: str, way: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(RunError, match=f"holds '{name}', which is no run's"):
        claim(tmp_path, **({way: True} if way else {}))
    assert (tmp_path / name).read_text(encoding="utf-8") == '{"model_type": "llama"}'


def test_clearing_leaves_what_is_not_a_runs(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "curve.png", "ledger.bin", "notes.txt", "checkpoints/3/x", "tensorboard/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old", encoding="utf-8")
    clear(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    write_text(path, "old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"cannot write to .*No space left"):
            write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_arrays_by_path(tmp_path: Path) -> None:
    tree = {"layer": [np.arange(3), {"bias": np.float32(2)}]}
    save_arrays(tmp_path / "a.npz", by_path(tree))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        found = dict(file)
    assert sorted(found) == ["layer/0", "layer/1/bias"]
    np.testing.assert_array_equal(found["layer/0"], np.arange(3))
