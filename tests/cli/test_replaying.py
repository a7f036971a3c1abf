"""`eggroll replay` rebuilds a run's parameters from its ledger; `eggroll ledger` checks one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import arrays, call

pytestmark = pytest.mark.optimised  # bits, as users get them


def replay(*arguments: str | Path) -> int:
    return call("replay", *arguments)


def loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.slow
def test_the_last_generation_is_the_trained_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(finished, finished, "--out", tmp_path / "p.npz") == 0
    assert "generation 3" in capsys.readouterr().out
    rebuilt, trained = loaded(tmp_path / "p.npz"), arrays(finished)
    assert rebuilt.keys() == trained.keys()
    for path in trained:
        np.testing.assert_array_equal(rebuilt[path], trained[path])


def test_any_generation_can_be_had(finished: Path, tmp_path: Path) -> None:
    files = finished / "initial.npz", finished / "ledger.bin"
    assert replay(*files, "--out", tmp_path / "0.npz", "--generation", "0") == 0
    assert replay(*files, "--out", tmp_path / "2.npz", "--generation", "2") == 0
    initial, rebuilt = loaded(finished / "initial.npz"), loaded(tmp_path / "0.npz")
    for path in initial:
        np.testing.assert_array_equal(rebuilt[path], initial[path])
    two = loaded(tmp_path / "2.npz")
    assert not np.array_equal(two["head/bias"], initial["head/bias"])
    assert not np.array_equal(two["head/bias"], arrays(finished)["head/bias"])


def test_a_file_is_not_replaced_unasked(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.npz").write_text("mine", encoding="utf-8")
    assert replay(finished, finished, "--out", tmp_path / "p.npz") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "p.npz").read_text(encoding="utf-8") == "mine"
    assert replay(finished, finished, "--out", tmp_path / "p.npz", "--overwrite", "--generation", "1") == 0


def test_what_cannot_be_replayed_is_said(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered = bytearray((finished / "ledger.bin").read_bytes())
    altered[-20] ^= 4
    (tmp_path / "altered.bin").write_bytes(altered)
    np.savez(tmp_path / "other.npz", **{k: v + np.float32(1) for k, v in loaded(finished / "initial.npz").items()})
    out = ("--out", tmp_path / "p.npz")
    for arguments, part in (
        ((finished, tmp_path / "none.bin", *out), "none.bin"),
        ((finished, tmp_path / "altered.bin", *out), "altered"),
        ((tmp_path / "other.npz", finished, *out), "head/bias"),
        ((finished, finished, *out, "--generation", "9"), "generation=9"),
    ):
        assert replay(*arguments) == 2, part
        error = capsys.readouterr().err
        assert error.startswith("eggroll: ") and part in error and "Traceback" not in error
        assert not (tmp_path / "p.npz").exists()


def test_a_ledger_is_checked(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ledger", finished) == 0
    assert "whole, 3 generations" in capsys.readouterr().out
    cut = tmp_path / "cut.bin"
    shutil.copy(finished / "ledger.bin", cut)
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 5)
    assert call("ledger", cut) == 0
    assert "2 generations" in (output := capsys.readouterr().out) and "cut short" in output
    data = bytearray(cut.read_bytes())
    data[len(data) // 2] ^= 1
    cut.write_bytes(data)
    assert call("ledger", cut) == 2
    assert "cut.bin" in capsys.readouterr().err
