"""The same seed gives the same run; a finished run is not replaced unasked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from eggroll.training import read_metrics
from tests.cli.running import arrays, call, train

pytestmark = pytest.mark.optimised  # bits, as users get them

TIMES = {"seconds", "members_per_second"}


def without_times(folder: Path) -> list[dict[str, float]]:
    return [{name: x for name, x in record.items() if name not in TIMES} for record in read_metrics(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "run.lock")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.slow
def test_a_seed_repeats_its_run(tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    assert train(once, "--seed", "0") == 0
    assert train(again, "--seed", "0") == 0
    assert (once / "ledger.bin").read_bytes() == (again / "ledger.bin").read_bytes()
    first, second = arrays(once), arrays(again)
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path])
    assert without_times(once) == without_times(again)


def test_a_finished_run_is_replaced_only_when_asked_to(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    capsys.readouterr()
    assert train(folder, "--seed", "1", "--generations", "1") == 2
    output = capsys.readouterr()
    assert "--overwrite" in output.err and "--out" in output.err
    assert contents(folder) == contents(finished)

    assert train(folder, "--seed", "1", "--generations", "1", "--overwrite") == 0
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["options"]["seed"] == 1
    # Another seed means another start, other noise and other data.
    assert len(read_metrics(folder)) == 1
    assert without_times(folder)[0] != without_times(finished)[0]
    assert not np.array_equal(arrays(folder)["head/kernel"], arrays(finished)["head/kernel"])


def test_a_rejected_option_leaves_the_finished_run_alone(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert train(folder, "--overwrite", "--rank", "9999") == 2
    assert contents(folder) == contents(finished)


def test_a_finished_run_is_seen_before_anything_slow_is_imported(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "eggroll.recipes.digits", None)  # importing it raises
    capsys.readouterr()
    assert train(finished) == 2
    output = capsys.readouterr()
    assert "--overwrite" in output.err and output.out == ""


def test_the_first_line_comes_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "eggroll.recipes.digits", None)
    with pytest.raises(ImportError):
        train(tmp_path / "run", "--model", "cnn")
    line = f"training cnn on handwritten digits, 3 generations of 4 members, into {tmp_path / 'run'}\n"
    assert capsys.readouterr().out == line


def test_a_run_goes_on_without_being_told_its_options_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert call("train", "--resume", "--out", folder) == 0
    assert "(resumed after 3)" in capsys.readouterr().out
    assert without_times(folder) == without_times(finished)
    before = contents(folder)
    for more, said in (
        (("--sigma", "0.5"), 'sigma: "auto" → 0.5'),
        (("--population", "8", "--generations", "9"), "population: 4 → 8; generations: 3 → 9"),
        (("--model", "cnn"), 'model: "mlp" → "cnn"'),
    ):
        assert call("train", "--resume", "--out", folder, *more) == 2
        assert said in capsys.readouterr().err
    assert contents(folder) == before
