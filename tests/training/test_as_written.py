"""What eggroll wrote into a run's folder and somebody altered is named; what a kill leaves goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eggroll.strategy.state import State
from eggroll.training import RunError, read_metrics
from eggroll.training.folder import disk
from eggroll.training.folder.files import write_text
from eggroll.training.folder.integrity import begin_manifest, check_run, is_as_written
from eggroll.training.ledger.replay_files import replay_files
from eggroll.training.store import Saving
from tests.training import problems
from tests.training.problems import run

SAVING = Saving(every=2, initial=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(folder, 4, saving=SAVING)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def altered(file: Path) -> None:
    """A bit flipped that a reader would not see by itself: of a digit, where there are some."""
    data = bytearray(file.read_bytes())
    start = data.find(b'"fitness_mean": ') + 1
    digits = [i for i, byte in enumerate(data) if i > start and 48 <= byte <= 57]
    data[digits[3] if digits else len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "initial.npz"])
def test_what_was_altered_is_named_until_the_manifest_is_deleted(name: str, copied: Path, tmp_path: Path) -> None:
    altered(copied / name)
    for use in (
        lambda: run(copied, 6, resume=True, saving=SAVING),
        lambda: replay_files(copied, copied, tmp_path / "o"),
    ):
        with pytest.raises(RunError, match=rf"not as eggroll wrote it: {name} is altered.*delete '.*MANIFEST.json'"):
            use()
    (copied / "MANIFEST.json").unlink()
    check_run(copied)
    if name == "metrics.jsonl":
        assert run(copied, 6, resume=True, saving=SAVING).resumed == 4


def test_a_line_cut_short_and_later_ones_are_mended_and_earlier_ones_named(copied: Path) -> None:
    metrics = copied / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + b'{"generation": 5}\n{"generation": 6, "fit')
    assert run(copied, 6, resume=True, saving=SAVING).resumed == 4
    assert metrics.read_bytes().startswith(whole) and len(read_metrics(copied)) == 6
    check_run(copied)
    metrics.write_bytes(whole[:-3])
    with pytest.raises(RunError, match=r"metrics\.jsonl has \d+ bytes, not"):
        check_run(copied)


def test_of_one_file_it_is_known_too(copied: Path) -> None:
    (copied / "another").write_text("of a user")
    assert all(is_as_written(copied / name) for name in ("metrics.jsonl", "config.json", "another"))
    altered(copied / "config.json")
    assert is_as_written(copied / "metrics.jsonl") and not is_as_written(copied / "config.json")
    (copied / "MANIFEST.json").unlink()
    assert is_as_written(copied / "config.json")  # as far as that is known


def test_an_altered_manifest_says_so(copied: Path) -> None:
    altered(copied / "MANIFEST.json")
    with pytest.raises(RunError, match=r"MANIFEST\.json is altered"):
        run(copied, 6, resume=True, saving=SAVING)


def test_a_kill_between_the_manifest_and_the_file_leaves_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_manifest(tmp_path)
    write_text(tmp_path / "config.json", "one")

    def killed(self: disk.Held, name: str, by: str) -> None:
        if name == "config.json":
            raise KeyboardInterrupt
        os.replace(self.path / by, self.path / name)

    for content in ("two", "three"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(disk.Held, "replace", killed)
            write_text(tmp_path / "config.json", content)
        check_run(tmp_path)
    assert (tmp_path / "config.json").read_text() == "one"
    write_text(tmp_path / "config.json", "four")
    check_run(tmp_path)
    (tmp_path / "config.json").write_text("five")
    with pytest.raises(RunError, match=r"config\.json"):
        check_run(tmp_path)


def test_initial_parameters_that_are_rounded_otherwise_are_those_of_the_folder(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on another processor, where drawing them again gives other last bits."""
    expected = run(Path(shutil.copytree(copied, tmp_path / "other")), 6, resume=True, saving=SAVING)
    drawn = problems.begin(problems.usual()).params

    def begin(factor: float) -> Callable[[Any], State]:
        params = {name: array * np.float32(factor) for name, array in drawn.items()}
        return lambda es: es.init(params, jax.random.key(7))

    monkeypatch.setattr(problems, "begin", begin(1 + 2**-22))
    problems.assert_same(run(copied, 6, resume=True, saving=SAVING), expected)
    assert "initial parameters are rounded otherwise here" in caplog.text
    monkeypatch.setattr(problems, "begin", begin(1.01))  # other parameters
    with pytest.raises(RunError, match=r"written for a base with other w"):
        run(copied, 8, resume=True, saving=SAVING)


NAMES = ("run.lock", "metrics.jsonl", "config.json", "initial.npz", "ledger.bin", "MANIFEST.json", "checkpoints")


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}.partial" for name in NAMES)])
def test_a_run_that_goes_on_changes_nothing_that_a_link_leads_to(name: str, copied: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    if (copied / name).exists():
        (copied / name).rename(aside)
    else:
        aside.write_text("kept")
    (copied / name).symlink_to(aside)

    def there() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (aside, *aside.rglob("*")) if path.is_file()}

    before = there()
    if name in ("run.lock", "ledger.bin", "checkpoints"):
        with pytest.raises(RunError, match="symbolic link"):
            run(copied, 5, resume=True, saving=SAVING)
    else:
        assert run(copied, 5, resume=True, saving=SAVING).resumed == 4
        assert not (copied / name).is_symlink() or name in ("config.json", "initial.npz") or name.endswith(".partial")
    assert there() == before
