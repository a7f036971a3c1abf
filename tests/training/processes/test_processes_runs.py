"""Runs in several real processes, against the same run in one."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.training import process_job
from tests.training.process_launch import ENDS, LOST, collect, free_port, launch, spawn

pytestmark = pytest.mark.slow

POPULATION, STOP, FAILS = process_job.POPULATION, 4, {"2": [5]}


def in_this_process(folder: Path, **spec: Any) -> dict[str, Any]:
    return process_job.run({"folder": str(folder), "raise_for": FAILS, **spec})


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    """The whole run in this process, never interrupted."""
    return in_this_process(tmp_path_factory.mktemp("alone"), noise=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """A run of four processes whose last one got SIGTERM: its folder, and what each process left."""
    folder, count = tmp_path_factory.mktemp("stopped"), 4
    signals = {str(STOP): [count - 1, "SIGTERM"]}
    ended = launch(folder, count, local_devices=2, signals=signals, raise_for=FAILS, noise=True)
    assert [end.status for end in ended] == [0] * count, ended
    assert [end.stderr for end in ended] == [""] * count
    return folder, [end.log for end in ended]


def assert_same_parameters(found: Any, wanted: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_a_signal_to_one_ends_all_after_the_same_generation(stopped):
    assert [log["generation"] for log in stopped[1]] == [STOP + 1] * len(stopped[1])


def test_fitness_and_parameters_are_those_of_one_process(stopped, alone):
    logs = stopped[1]
    for log in logs:
        for generation, mean in log["means"].items():
            np.testing.assert_allclose(mean, alone["means"][int(generation)], rtol=1e-5)
        assert log["params"] == logs[0]["params"]  # bit for bit
        assert_same_parameters(log["params"][str(STOP)], alone["params"][STOP])


def test_noise_is_bit_equal_and_drawn_where_the_members_live(stopped, alone):
    whole = np.array(alone["noise"]["words"][0], np.uint32)
    drawn = {}
    for log in stopped[1]:
        for first, words in log["noise"]["words"].items():
            assert int(first) not in drawn
            drawn[int(first)] = np.array(words, np.uint32)
        assert_same_parameters(log["noise"]["members"], alone["noise"]["members"])
    assert len(drawn) == 2 * len(stopped[1])
    np.testing.assert_array_equal(np.concatenate([drawn[first] for first in sorted(drawn)]), whole)


def test_each_member_is_scored_in_the_process_that_holds_it(stopped):
    logs, share = stopped[1], POPULATION // len(stopped[1])
    for generation in range(0, STOP + 1, 2):
        for process, log in enumerate(logs):
            assert log["scored"][str(generation)] == list(range(process * share, (process + 1) * share))


def test_a_scorer_that_raises_is_counted_everywhere(stopped):
    for log in stopped[1]:
        assert log["failed"]["0"] == [0, ""]
        assert log["failed"]["2"] == [1, "member 5: KeyError: 'no answer in generation 2'"]


def test_what_several_processes_hold_is_shared_out(stopped):
    shared = [log["shared_out"] for log in stopped[1]]
    assert sorted(chain.from_iterable(shared)) == list(range(POPULATION))
    assert {len(members) for members in shared} == {POPULATION // len(shared)}
    assert [log["everyone"] for log in stopped[1]] == [[0, 1, 2, 3, 4]] * len(shared)


def test_a_scorer_that_raises_everywhere_and_data_that_differ(stopped):
    for log in stopped[1]:
        assert "raised for all 5 members; the first: member 0: IndexError: list index" in log["all_raise"]
        assert "got the data in which processes 2, 3 of 4 differ from process 0" in log["differ"]


def test_it_resumes_on_one(stopped, alone, tmp_path):
    """On others, and where one was killed: `test_processes_fit.py`, with checkpoints."""
    shutil.copy(stopped[0] / "state.npz", tmp_path)
    log = in_this_process(tmp_path)
    assert list(log["means"]) == list(range(STOP + 1, process_job.GENERATIONS))
    assert_same_parameters(log["params"][process_job.GENERATIONS - 1], alone["params"][process_job.GENERATIONS - 1])


def test_an_error_in_one_process_stops_the_others(tmp_path):
    other, failed = launch(tmp_path, 2, error=[1, 3])
    assert (failed.status, failed.log) == (1, None)
    assert "ZeroDivisionError: a bug in one process" in failed.stderr
    assert LOST not in failed.stderr
    assert other.status in ENDS
    assert LOST in other.stderr


def test_the_first_process_that_ends_early_stops_the_others(tmp_path):
    first, other = launch(tmp_path, 2, exit=[0, 3])
    assert (first.log, other.log) == (None, None)
    assert first.status > 0 and other.status > 0
    assert LOST in other.stderr


def test_a_process_that_no_longer_answers_stops_the_others(tmp_path):
    spec = {"coordinator": f"localhost:{free_port()}", "signals": {"3": [1, "SIGSTOP"]}}
    started = [spawn(tmp_path, 2, i, **spec) for i in range(2)]
    try:
        (end,) = collect(tmp_path, started[:1])
    finally:
        started[1].kill()
        started[1].communicate()
    assert end.status in ENDS
    assert LOST in end.stderr
