"""A run that was stopped goes on as if it had not been; `tests/cli/test_killing.py` kills whole processes."""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from eggroll.training import EarlyStopping, Result, RunError, Saving, fit, replay
from tests.training.problems import CARRY, COUNTING, assert_same, batches, begin, left_by, run, strategy, usual

pytestmark = pytest.mark.optimised  # bits, as users get them

LAST = 12


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict[str, Any]]:
    """(result, what it left) of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, LAST), left_by(folder)


def stop_after(folder: Path, generation: int, **options: Any) -> Result:
    shown: list[dict[str, Any]] = []
    return run(folder, LAST, show=shown.append, asked_to_stop=lambda: len(shown) == generation, **options)


def kill_after(folder: Path, generation: int, **options: Any) -> None:
    def show(record: dict[str, Any]) -> None:
        if record["generation"] == generation:
            raise Killed

    with pytest.raises(Killed):
        run(folder, LAST, show=show, **options)


@pytest.mark.parametrize("generation", [4, 7])
def test_a_run_that_was_asked_to_stop_goes_on(generation: int, whole: Any, tmp_path: Path) -> None:
    assert stop_after(tmp_path, generation).generation == generation
    result = run(tmp_path, LAST, resume=True)
    assert (result.ended, result.resumed) == ("finished", generation)
    assert_same(result, whole[0])
    assert left_by(tmp_path) == whole[1]


@pytest.mark.parametrize(("generation", "saved"), [(3, 0), (11, 8)])
def test_a_run_that_was_killed_goes_on_from_its_checkpoint(
    generation: int, saved: int, whole: Any, tmp_path: Path
) -> None:
    kill_after(tmp_path, generation)
    assert len(left_by(tmp_path)["metrics"]) == generation
    result = run(tmp_path, LAST, resume=True)
    assert (result.ended, result.resumed) == ("finished", saved)
    assert_same(result, whole[0])
    assert left_by(tmp_path) == whole[1]


def test_a_run_may_be_killed_again_and_again(whole: Any, tmp_path: Path) -> None:
    kill_after(tmp_path, 5)
    for generation in (6, 9, 9, 10):
        kill_after(tmp_path, generation, resume=True)
    assert_same(run(tmp_path, LAST, resume=True), whole[0])
    assert left_by(tmp_path) == whole[1]


def test_seconds_go_on(tmp_path: Path) -> None:
    before = stop_after(tmp_path, 5).seconds
    assert run(tmp_path, LAST, resume=True).seconds > before > 0


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop_after(tmp_path, 10)
    newest = max((tmp_path / "checkpoints").glob("10*"), key=lambda path: path.is_dir())
    biggest = max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 1
    biggest.write_bytes(data)
    with caplog.at_level(logging.WARNING, "eggroll"):
        result = run(tmp_path, LAST, resume=True)
    assert result.resumed == 8 and "10" in caplog.text and "skipped" in caplog.text
    assert_same(result, whole[0])
    assert left_by(tmp_path) == whole[1]


def test_a_clock_that_jumps_changes_nothing(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what the clock says while a run goes, nor what times its files have."""
    jumps = itertools.cycle([2e9, 1e9, 2.5e9, 1.0])  # to 2049, and back to 1970
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(jumps) * 1e9))
    stop_after(tmp_path, 7, saving=Saving(every=2, tensorboard=True))
    for number, path in enumerate(sorted(tmp_path.rglob("*"))):
        os.utime(path, (1e9, 2e9 - 1e6 * number))
    result = run(tmp_path, LAST, resume=True, saving=Saving(every=2, tensorboard=True))
    assert (result.ended, result.resumed) == ("finished", 7)
    assert_same(result, whole[0])
    left = left_by(tmp_path)
    assert (left["metrics"], left["ledger"]) == (whole[1]["metrics"], whole[1]["ledger"])


def test_resuming_nothing_starts(whole: Any, tmp_path: Path) -> None:
    result = run(tmp_path / "new", LAST, resume=True)
    assert result.resumed == 0
    assert_same(result, whole[0])


def test_a_finished_run_has_nothing_left_to_do(whole: Any, tmp_path: Path) -> None:
    run(tmp_path, LAST)
    result = run(tmp_path, LAST, resume=True)
    assert (result.ended, result.resumed) == ("finished", LAST)
    assert_same(result, whole[0])
    assert left_by(tmp_path) == whole[1]


def test_a_run_that_stopped_early_stays_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {"evaluate": lambda state, carry: {"level": 1.0}, "evaluate_every": 2}
    options["early_stopping"] = EarlyStopping("level", patience=2)
    first = run(tmp_path, LAST, **options)
    assert (first.ended, first.generation) == ("stopped early", 4)
    again = run(tmp_path, LAST, resume=True, **options)
    assert (again.ended, again.generation) == ("stopped early", 4)


def test_early_stopping_remembers_over_a_stop(tmp_path: Path) -> None:
    options: dict[str, Any] = {"evaluate": lambda state, carry: {"level": 1.0}, "evaluate_every": 2}
    options["early_stopping"] = EarlyStopping("level", patience=3)
    assert stop_after(tmp_path, 3, **options).generation == 3
    result = run(tmp_path, LAST, resume=True, **options)
    assert (result.ended, result.generation) == ("stopped early", 6)


def test_a_run_in_the_folder_is_not_replaced_unasked(whole: Any, tmp_path: Path) -> None:
    stop_after(tmp_path, 5)
    before = left_by(tmp_path)
    with pytest.raises(RunError, match="holds a run; go on with it with --resume"):
        run(tmp_path, LAST)
    with pytest.raises(RunError, match="both --overwrite and --resume"):
        run(tmp_path, LAST, resume=True, overwrite=True)
    assert left_by(tmp_path) == before
    result = run(tmp_path, LAST, overwrite=True)
    assert result.resumed == 0
    assert_same(result, whole[0])
    assert left_by(tmp_path) == whole[1]


def test_changed_settings_are_named_and_refused(tmp_path: Path) -> None:
    stop_after(tmp_path, 5, settings={"data": "a", "seed": 1})
    before = left_by(tmp_path)
    with pytest.raises(RunError) as error:
        run(tmp_path, LAST, resume=True, es=strategy(sigma=0.2), settings={"data": "b", "seed": 1, "more": True})
    for part in ("sigma: 0.1 → 0.2", 'data: "a" → "b"', "more: nothing → true", "--force"):
        assert part in str(error.value)
    assert "seed" not in str(error.value) and "population" not in str(error.value)
    assert left_by(tmp_path) == before


def test_changed_settings_may_be_forced_and_are_written_down(tmp_path: Path) -> None:
    stop_after(tmp_path, 5)
    es = strategy(sigma=0.2)
    result = run(tmp_path, LAST, resume=True, force=True, es=es)
    assert (result.ended, result.resumed) == ("finished", 5)
    config = left_by(tmp_path)["config"]
    assert config["strategy"]["sigma"] == 0.2
    assert config["changes"] == [{"generation": 5, "differences": ["sigma: 0.1 → 0.2"]}]
    rebuilt = replay(begin(es).params, tmp_path / "ledger.bin")
    assert_same(Result(rebuilt, result.carry, "", 0.0, 0), result)


def test_other_versions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop_after(tmp_path, 5)
    config = left_by(tmp_path)["config"]
    config["versions"]["jax"] = "0.0.1"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "MANIFEST.json").unlink()  # else the file is told to be altered
    run(tmp_path, LAST, resume=True)
    assert 'jax: "0.0.1" → ' in caplog.text


@pytest.mark.parametrize("spoil", ["", "{", "[]"])
def test_a_configuration_that_cannot_be_read(spoil: str, tmp_path: Path) -> None:
    stop_after(tmp_path, 5)
    (tmp_path / "config.json").write_text(spoil, encoding="utf-8")
    (tmp_path / "MANIFEST.json").unlink()  # else the file is told to be altered
    with pytest.raises(RunError, match=r"cannot read .*config\.json"):
        run(tmp_path, LAST, resume=True)


def test_settings_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="JSON cannot hold"):
        run(tmp_path, LAST, settings={"model": object()})


def test_a_state_that_has_run_begins_no_ledger(tmp_path: Path) -> None:
    es = usual()
    state = run(None, 2, es=es).state
    with pytest.raises(RunError, match="a state of generation 2 to begin with"):
        fit(es, state, COUNTING, batches(), carry=CARRY, generations=4, folder=tmp_path)


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    def show(record: dict[str, Any]) -> None:
        with pytest.raises(RunError, match="in use"):
            run(tmp_path, LAST, resume=True)
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, LAST, show=show)
    assert run(tmp_path, LAST, resume=True).ended == "finished"  # the lock went with its run


def test_the_ledger_is_optional(whole: Any, tmp_path: Path) -> None:
    result = run(tmp_path, LAST, saving=Saving(every=4, ledger=False))
    assert_same(result, whole[0])
    assert not (tmp_path / "ledger.bin").exists()
