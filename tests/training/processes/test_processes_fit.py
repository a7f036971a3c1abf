"""A run with checkpoints in several real processes: stopped, killed, and gone on with in other numbers."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eggroll.training import Result, read_metrics, replay
from eggroll.training.folder.files import FolderLock
from eggroll.training.ledger.reader import summarize
from tests.training.problems import begin, left_by, run, usual
from tests.training.process_fit_job import LAST
from tests.training.process_launch import ENDS, LOST, OTHER, Ended, assert_told, launch

pytestmark = pytest.mark.slow

JOB = "tests.training.process_fit_job"


def start(tmp_path: Path, count: int, **spec: Any) -> list[Ended]:
    """The run in so many processes, which leave their logs in a folder of this start's own."""
    number = sum(1 for _ in tmp_path.glob("start*"))
    return launch(tmp_path / f"start{number}", count, job=JOB, run=str(tmp_path / "run"), **spec)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict[str, Any]]:
    """The run in one process, which nothing stopped, and what it left."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, LAST), left_by(folder)


def in_this_process(tmp_path: Path) -> Result:
    return run(tmp_path / "run", LAST, resume=True)


def assert_close(found: Any, wanted: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def assert_records(folder: Path, expected: dict[str, Any]) -> None:
    """The metrics of the whole run to rounding, none twice; and a ledger from which the parameters come back."""
    lines = read_metrics(folder)
    assert [line["generation"] for line in lines] == list(range(1, LAST + 1))
    for line, wanted in zip(lines, expected["metrics"], strict=True):
        assert {k: line[k] for k in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert summarize(folder / "ledger.bin").generations == LAST


def test_all_refuse_with_the_reason_and_after_a_signal_to_one_it_goes_on_in_one(whole: Any, tmp_path: Path) -> None:
    """Four runs of the same processes: three that are refused in both, for what one of them has, and one that ends."""
    runs = [tmp_path / name for name in ("held", "other", "ended")]
    own = ({}, {"1": OTHER}, {"1": {"ends": 4}})
    refused = [{"run": str(folder), "own": each} for folder, each in zip(runs, own, strict=True)]
    with FolderLock(runs[0]):
        ended = start(tmp_path, 2, refused=refused, signals={"5": [1, "SIGTERM"]})
    assert [(end.status, end.stderr) for end in ended] == [(0, "")] * 2
    for end in ended:
        assert end.log is not None
        held, other, data = end.log["refused"]
        assert "in use by process" in held
        assert_told(other)
        assert 'data of generation 5: "float32[5, 4], float32[5, 3]" → "none: the data have ended"' in data
        assert (end.log["ended"], end.log["seen"]) == ("interrupted", [1, 2, 3, 4, 5])
    result = in_this_process(tmp_path)
    assert (result.ended, result.resumed) == ("finished", 5)
    assert_close(result.state.params, whole[0].state.params)
    assert float(result.carry["mean"]) == pytest.approx(float(whole[0].carry["mean"]), rel=1e-5)
    assert_records(tmp_path / "run", whole[1])
    rebuilt = replay(begin(usual()).params, tmp_path / "run" / "ledger.bin")
    assert_close(rebuilt.params, result.state.params)


def test_a_run_that_loses_a_process_goes_on_in_more_and_in_fewer(whole: Any, tmp_path: Path) -> None:
    """In two, in four from what two saved, in one from what four saved; the first is lost, and then another one."""
    for count, victim, saved in ((2, 0, 4), (4, 2, 8)):
        for number, end in enumerate(
            start(tmp_path, count, saved=saved, signals={f"{saved + 3}": [victim, "SIGKILL"]})
        ):
            assert end.log is None and LOST in end.stderr, end.stderr
            assert (end.status == -signal.SIGKILL) if number == victim else (end.status in ENDS)
    result = in_this_process(tmp_path)
    assert (result.ended, result.resumed) == ("finished", 8)
    assert_close(result.state.params, whole[0].state.params)
    assert_records(tmp_path / "run", whole[1])


@pytest.mark.parametrize(("how", "victim"), [("killed while it saves", 1), ("an error", 0)])
def test_who_is_left_of_processes_joined_by_jax_says_so(how: str, victim: int, tmp_path: Path) -> None:
    """Of those that `processes.start` joined, each way to end is tried here or in `test_processes_runs.py`."""
    spec = {"error": [victim, 5]} if how == "an error" else {"signals": {"5": [victim, "SIGKILL"]}}
    ended = start(tmp_path, 2, by_jax=True, **spec)
    assert ended[victim].status == (1 if how == "an error" else -signal.SIGKILL)
    left = ended[1 - victim]
    assert left.log is None and left.status in ENDS and LOST in left.stderr, left


def test_a_second_ctrl_c_in_one_leaves_the_others_nothing_to_wait_for(tmp_path: Path) -> None:
    ended = start(tmp_path, 2, saved=4, times=2, signals={"7": [1, "SIGINT"]})
    assert ended[1].log is not None and ended[1].log["ended"] == "interrupted at once"
    assert ended[0].log is None and ended[0].status != 0 and LOST in ended[0].stderr, ended[0].stderr
    result = in_this_process(tmp_path)
    assert (result.ended, result.resumed) == ("finished", 4)
