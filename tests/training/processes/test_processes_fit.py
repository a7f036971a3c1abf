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
from tests.training.process_launch import Ended, launch

pytestmark = pytest.mark.killing

JOB = "tests.training.process_fit_job"
LOST = "What was saved is whole: start again with --resume, on the processes that are left or on more."


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


@pytest.mark.slow
def test_a_signal_to_one_saves_and_the_run_goes_on_in_one(whole: Any, tmp_path: Path) -> None:
    ended = start(tmp_path, 2, signals={"5": [1, "SIGTERM"]})
    assert [(end.status, end.stderr) for end in ended] == [(0, "")] * 2
    for end in ended:
        assert end.log is not None
        assert (end.log["ended"], end.log["seen"]) == ("interrupted", [1, 2, 3, 4, 5])
    result = in_this_process(tmp_path)
    assert (result.ended, result.resumed) == ("finished", 5)
    assert_close(result.state.params, whole[0].state.params)
    assert float(result.carry["mean"]) == pytest.approx(float(whole[0].carry["mean"]), rel=1e-5)
    assert_records(tmp_path / "run", whole[1])
    rebuilt = replay(begin(usual()).params, tmp_path / "run" / "ledger.bin")
    assert_close(rebuilt.params, result.state.params)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "victim", "then"), [(1, 0, 2), (2, 0, 4), (4, 2, 1)])
def test_a_run_that_lost_a_process_goes_on_in_fewer_or_more(
    first: int, victim: int, then: int, whole: Any, tmp_path: Path
) -> None:
    for number, end in enumerate(start(tmp_path, first, saved=4, signals={"7": [victim, "SIGKILL"]})):
        assert end.log is None
        if number == victim:
            assert end.status == -signal.SIGKILL
        else:
            assert end.status != 0 and LOST in end.stderr, end.stderr
    for end in start(tmp_path, then):
        assert end.status == 0, end.stderr
        assert end.log is not None
        assert (end.log["ended"], end.log["resumed"]) == ("finished", 4)
        assert_close(end.log["params"], jax.tree.map(lambda x: np.asarray(x).tolist(), whole[0].state.params))
    assert_records(tmp_path / "run", whole[1])


@pytest.mark.slow
@pytest.mark.parametrize(  # each with each value of another, once
    ("how", "victim", "by_jax"),
    [
        ("killed while it saves", 0, False),
        ("killed while it saves", 1, True),
        ("an error", 0, True),
        ("an error", 1, False),
    ],
)
def test_who_is_left_says_so_and_ends_with_a_status(how: str, victim: int, by_jax: bool, tmp_path: Path) -> None:
    spec = {"error": [victim, 5]} if how == "an error" else {"signals": {"5": [victim, "SIGKILL"]}}
    ended = start(tmp_path, 2, by_jax=by_jax, **spec)
    assert ended[victim].status == (1 if how == "an error" else -signal.SIGKILL)
    left = ended[1 - victim]
    assert left.log is None and left.status in (1, 6) and LOST in left.stderr, left


@pytest.mark.slow
def test_data_that_end_in_one_process_end_all_with_the_reason(tmp_path: Path) -> None:
    for end in start(tmp_path, 2, own={"1": {"ends": 4}}):
        assert end.status == 1 and end.log is None
        assert 'data of generation 5: "float32[5, 4], float32[5, 3]" → "none: the data have ended"' in end.stderr


@pytest.mark.slow
def test_a_second_ctrl_c_in_one_leaves_the_others_nothing_to_wait_for(tmp_path: Path) -> None:
    ended = start(tmp_path, 2, saved=4, times=2, signals={"7": [1, "SIGINT"]})
    assert ended[1].log is not None and ended[1].log["ended"] == "interrupted at once"
    assert ended[0].log is None and ended[0].status != 0 and LOST in ended[0].stderr, ended[0].stderr
    result = in_this_process(tmp_path)
    assert (result.ended, result.resumed) == ("finished", 4)


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_in_all_its_processes(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run"):
        for end in start(tmp_path, 2):
            assert end.status != 0 and "in use by process" in end.stderr, end.stderr
