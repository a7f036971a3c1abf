"""Nothing that a run left is lost or mixed up: by errors in user code, forced changes, missing files, other keys."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.training import Compiled, Result, RunError, Saving, fit, replay
from eggroll.training.ledger.journal import Journal
from eggroll.training.metrics import MetricsFile
from tests.quick import quickest
from tests.training.problems import CARRY, COUNTING, assert_same, batches, begin, fitness, left_by, run, strategy, usual

LAST = 12


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def stop_after(folder: Path, generation: int, **options: Any) -> Result:
    shown: list[Any] = []
    return run(folder, LAST, show=shown.append, asked_to_stop=lambda: len(shown) == generation, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "run.lock"
    }


def refused(folder: Path, message: str, **options: Any) -> None:
    """The run is refused, and every file is as it was."""
    before = files(folder)
    with pytest.raises(RunError, match=message):
        run(folder, LAST, **options)
    assert files(folder) == before


def test_a_lost_configuration_is_no_new_start(tmp_path: Path) -> None:
    stop_after(tmp_path, 6)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, r"cannot read .*config\.json", resume=True)


def test_checkpoints_that_all_lost_their_manifests_are_no_new_start(tmp_path: Path) -> None:
    stop_after(tmp_path, 6)
    for manifest in (tmp_path / "checkpoints").glob("*/MANIFEST.json"):
        manifest.unlink()
    refused(tmp_path, "no whole one among 4, 6", resume=True)


@pytest.mark.parametrize("left", [(), ("ledger.bin", "initial.npz")])
def test_a_run_whose_checkpoints_are_gone_is_no_new_start(left: tuple[str, ...], tmp_path: Path) -> None:
    """Nor is a folder in which a model was shipped as its ledger."""
    run(tmp_path, LAST, saving=Saving(every=4, initial=True))
    shutil.rmtree(tmp_path / "checkpoints")
    for file in tmp_path.iterdir() if left else ():
        if file.name not in left:
            file.unlink()
    refused(
        tmp_path, "cannot read .*config.json" if left else "a run of 12 generations whose checkpoints are", resume=True
    )
    refused(tmp_path, "holds a run")


def test_the_only_checkpoint_that_lost_its_manifest_is_no_new_start(tmp_path: Path) -> None:
    run(tmp_path, LAST, saving=Saving(every=4, keep=1))
    (tmp_path / "checkpoints/12/MANIFEST.json").unlink()
    refused(tmp_path, r"\(there is no whole one among 12\)", resume=True)


def test_a_first_checkpoint_cut_short_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop_after(tmp_path, 8)
    shutil.rmtree(tmp_path / "checkpoints/8")  # as far as a run gets that is killed while it writes the first one
    (tmp_path / "checkpoints/4/MANIFEST.json").unlink()
    with caplog.at_level(logging.WARNING, "eggroll"):
        result = run(tmp_path, LAST, resume=True)
    assert result.resumed == 0 and "checkpoints/4: it was never finished" in caplog.text
    assert "starts again from its beginning" in caplog.text
    assert_same(result, run(None, LAST))


def test_other_chunks_are_named(tmp_path: Path) -> None:
    stop_after(tmp_path, 6)
    refused(tmp_path, 'chunk: "auto" → 2', resume=True, es=strategy(chunk=2))


@pytest.mark.parametrize("damage", ["altered", "short", "gone"])
def test_a_run_goes_on_without_a_damaged_ledger_if_forced(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop_after(tmp_path, 6)
    ledger = tmp_path / "ledger.bin"
    data = ledger.read_bytes()
    middle = len(data) // 2
    if damage == "gone":
        ledger.unlink()
    else:
        ledger.write_bytes(data[:middle] + (b"" if damage == "short" else b"?" + data[middle + 1 :]))
    spoilt = files(tmp_path)
    refused(tmp_path, r"To go on without a ledger: --force \(force=True\)", resume=True)
    with caplog.at_level(logging.WARNING, "eggroll"):
        result = run(tmp_path, LAST, resume=True, force=True)
    assert "goes on without a ledger" in caplog.text and not ledger.exists()
    assert files(tmp_path).get("ledger-damaged.bin") == spoilt.get("ledger.bin")
    assert result.resumed == 6
    assert_same(result, run(None, LAST))


@pytest.mark.parametrize(
    ("what", "moment"),
    quickest(
        [(what, moment) for what in (Journal, MetricsFile) for moment in (6, 7, 8)], (Journal, 7), (MetricsFile, 8)
    ),
)
def test_what_a_failing_disk_has_no_record_of_is_not_saved(
    what: type, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment's shortage: the last save succeeds, and must not be ahead of ledger and metrics."""
    name = "append" if what is Journal else "log"
    add, calls = getattr(what, name), []

    def failing(self: Any, record: Any, *more: Any) -> None:
        calls.append(record)
        if len(calls) == moment:
            raise RunError("No space left on device")
        add(self, record, *more)

    saving = Saving(every=4, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(what, name, failing)
        with pytest.raises(RunError, match="No space left") as error:
            run(tmp_path, LAST, saving=saving)
    assert error.value.result.generation == moment - 1
    result = run(tmp_path, LAST, saving=saving, resume=True)
    assert result.resumed == moment - 1  # not one generation is lost
    assert_same(result, run(tmp_path / "whole", LAST, saving=saving))
    assert left_by(tmp_path) == left_by(tmp_path / "whole")


def test_a_run_without_a_checkpoint_is_not_replaced_unasked(tmp_path: Path) -> None:
    def show(record: dict[str, Any]) -> None:
        if record["generation"] == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, LAST, show=show)
    refused(tmp_path, "holds a run")


def test_another_key_is_refused(tmp_path: Path) -> None:
    stop_after(tmp_path, 6)
    es = usual()
    state = es.init(begin(es).params, jax.random.key(8))
    before = files(tmp_path)
    with pytest.raises(RunError, match="begun with another key"):
        fit(es, state, COUNTING, batches(), generations=LAST, carry=CARRY, folder=tmp_path, resume=True, force=True)
    assert files(tmp_path) == before


def test_settings_of_the_users_do_not_hide_the_strategys(tmp_path: Path) -> None:
    stop_after(tmp_path, 6, settings={"sigma": "small"})
    refused(tmp_path, "sigma: 0.1 → 0.3", resume=True, settings={"sigma": "small"}, es=strategy(sigma=0.3))


def test_a_forced_change_that_was_killed_at_once_goes_on(tmp_path: Path) -> None:
    stop_after(tmp_path, 6)
    es = strategy(sigma=0.2)

    def dies(state: Any, carry: Any) -> Any:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, LAST, es=es, resume=True, force=True, evaluate=dies, evaluate_every=7)
    result = run(tmp_path, LAST, es=es, resume=True)  # what was forced once is the run's own
    rebuilt = replay(begin(es).params, tmp_path / "ledger.bin")
    assert_same(Result(rebuilt, result.carry, "", 0.0, 0), result)


def test_a_forced_change_is_the_runs_own_from_before_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop_after(tmp_path, 6)
    run(tmp_path, 7, es=strategy(sigma=0.2), resume=True, force=True)
    for generation in (6, 7):
        shutil.rmtree(tmp_path / f"checkpoints/{generation}")
    refused(tmp_path, "sigma: 0.2 → 0.1", resume=True)
    refused(tmp_path, "sigma: 0.2 → 0.3", resume=True, es=strategy(sigma=0.3))
    with caplog.at_level(logging.WARNING, "eggroll"):
        result = run(tmp_path, LAST, es=strategy(sigma=0.2), resume=True)
    assert result.resumed == 4 and "hold from generation 4 on" in caplog.text
    config = left_by(tmp_path)["config"]
    assert config["changes"] == [{"generation": 4, "differences": ["sigma: 0.1 → 0.2"]}]
    assert_same(Result(replay(begin(usual()).params, tmp_path / "ledger.bin"), result.carry, "", 0.0, 0), result)


def test_what_the_ledger_refuses_leaves_the_settings_alone(tmp_path: Path) -> None:
    stop_after(tmp_path, 6)
    es = strategy(sigma=0.2)
    state = es.init({"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}, jax.random.key(7))  # another base
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(RunError, match="written for a base with other"):
        fit(es, state, COUNTING, batches(), generations=LAST, carry=CARRY, folder=tmp_path, resume=True, force=True)
    assert (tmp_path / "config.json").read_bytes() == before
    assert run(tmp_path, LAST, resume=True).ended == "finished"


@pytest.mark.parametrize("carry", [{"n": np.zeros(3)}, {"n": np.zeros(3, np.float32)}, {"n": 0.0}])
def test_a_carry_of_numbers_or_of_numpys_goes_on(carry: Any, tmp_path: Path) -> None:
    step = Compiled(lambda params, seen, x, y: (fitness(params, x, y), {"n": seen["n"] + x.mean()}), carries=True)
    es, options = usual(), {"generations": 4, "carry": carry, "folder": tmp_path, "resume": True}
    fit(es, begin(es), step, [next(batches())] * 2, **options)
    result = fit(es, begin(es), step, [next(batches())] * 4, **options)
    assert (result.ended, result.resumed) == ("finished", 2)


def test_an_error_in_user_code_saves_what_there_was(tmp_path: Path) -> None:
    def breaks(state: Any, carry: Any) -> Any:
        if int(state.generation) == 7:
            raise ZeroDivisionError("a bug")
        return {}

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, LAST, evaluate=breaks, evaluate_every=1, saving=Saving(every=100))
    whole = run(None, LAST)
    result = run(tmp_path, LAST, resume=True, saving=Saving(every=100))
    assert result.resumed == 6
    assert_same(result, whole)
    assert [line["generation"] for line in left_by(tmp_path)["metrics"]] == list(range(1, LAST + 1))


def test_a_hook_may_return_jax_scalars_but_not_the_loops_names(tmp_path: Path) -> None:
    run(tmp_path, 2, evaluate=lambda state, carry: {"size": jnp.float32(1.5)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])["size"] == 1.5
    with pytest.raises(RunError, match="got generation from the evaluation hook"):
        run(None, 2, evaluate=lambda state, carry: {"generation": 9})
