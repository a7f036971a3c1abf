"""What runs of several processes are made of, in one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest

from eggroll.training import processes
from eggroll.training.errors import RunError
from eggroll.training.processes import talk as processes_talk
from eggroll.training.processes.joining import meet
from tests.training.process_launch import OTHER, assert_told, free_port, launch

FIT = "tests.training.process_fit_job"
OUTPUTS = {"answer": np.arange(8.0).reshape(4, 2), "length": np.array([3, 1, 4, 1])}


def test_a_process_alone_agrees_with_itself():
    processes.start("localhost:1", processes=1, process_id=0)
    assert processes.is_main()
    assert processes.count() == 1
    assert processes.agree(True) is True
    assert processes.agree(False) is False
    processes.same(b"anything", "settings")
    processes.stop()


def test_members_of_a_process_alone_are_all():
    numbers, host = processes.local_members(jax.tree.map(jax.numpy.asarray, OUTPUTS))
    np.testing.assert_array_equal(numbers, np.arange(4))
    jax.tree.map(np.testing.assert_array_equal, host, {**OUTPUTS, "answer": OUTPUTS["answer"].astype(np.float32)})
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host))


def test_a_scorer_gets_one_member_at_a_time():
    found = processes.score(OUTPUTS, lambda out, i: out["answer"].sum() * 10 + out["length"] + 100 * i, numbered=True)
    np.testing.assert_array_equal(found.fitness, [13, 151, 294, 431])
    assert found.fitness.dtype == np.float64
    assert (found.failed, found.error) == (0, "")


@pytest.mark.parametrize("answer", [None, "many", [1.0, 2.0]])
def test_a_scorer_that_raises_or_gives_no_number_loses_its_member_alone(answer):
    def scorer(output: Any, member: int) -> Any:
        return answer if member == 2 else 1.5

    found = processes.score(OUTPUTS, scorer, numbered=True)
    np.testing.assert_array_equal(found.fitness, [1.5, 1.5, np.nan, 1.5])
    assert found.failed == 1
    assert found.error.startswith(("member 2: TypeError", "member 2: ValueError"))


def test_a_scorer_that_always_raises_ends_the_run():
    def scorer(output: Any) -> float:
        raise OSError("no connection to the judge")

    with pytest.raises(
        RunError, match=r"raised for all 4 members; the first: member 0: OSError: no connection"
    ) as info:
        processes.score(OUTPUTS, scorer)
    assert isinstance(info.value.__cause__, OSError)


def test_a_score_that_is_not_a_number_is_no_error():
    found = processes.score(OUTPUTS, lambda output: float("nan"))
    assert np.isnan(found.fitness).all()
    assert found.failed == 0


def test_a_user_who_interrupts_a_scorer_is_heard():
    def scorer(output: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.score(OUTPUTS, scorer)


@pytest.mark.parametrize("outputs", [{}, np.float32(1), {"a": np.zeros(3), "b": np.zeros(4)}])
def test_outputs_without_a_row_per_member(outputs):
    with pytest.raises(ValueError, match="one row per member is required"):
        processes.score(outputs, float)


def test_start_after_jax_has_started():
    jax.devices()
    with pytest.raises(RunError, match="before any computation"):
        processes.start(f"localhost:{free_port()}", 2, 0)


def raised_by(*calls: tuple[Any, ...]) -> list[str]:
    """What `meet` says in each of several processes, as threads."""
    said = [""] * len(calls)

    def call(k: int) -> None:
        try:
            meet(*calls[k])
        except RunError as why:
            said[k] = str(why)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_who_does_not_come_is_named():
    where = f"localhost:{free_port()}"
    first, other = raised_by((where, 4, 0, 1.0), (where, 4, 2, 30.0))
    assert "of 4 processes, these did not come within 1 s: 1, 3." in first
    assert "process 2 of 4 could not join the run" in other
    assert "before all were there" in other


def test_there_is_no_process_0():
    where = f"localhost:{free_port()}"
    (said,) = raised_by((where, 2, 1, 0.2))
    assert f"there is no process 0 at {where} after 0.2 s" in said


def test_a_number_given_twice_and_another_count():
    where = f"localhost:{free_port()}"
    first, *others = raised_by((where, 3, 0, 2.0), (where, 3, 1, 30.0), (where, 3, 1, 30.0), (where, 4, 2, 30.0))
    assert "these did not come within 2 s: 2." in first
    assert sum("another process has the number 1 too" in said for said in others[:2]) == 1
    assert "it was told that there are 4 processes, process 0 that there are 3" in others[2]


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        (said,) = raised_by((f"localhost:{server.getsockname()[1]}", 2, 0, 1.0))
    assert "choose one that is free" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("localhost", 2, 0), r"got coordinator='localhost'; \"host:port\""),
        ((None, 2, 0), "got coordinator=None"),
        (("localhost:1", None, 0), "got processes=None"),
        (("localhost:1", 2, 2), "got processes=2 and process_id=2"),
    ],
)
def test_arguments_that_do_not_fit_together(arguments, said):
    with pytest.raises(RunError, match=said):
        meet(*arguments, 1.0)


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_what_jax_says_about_a_lost_process(monkeypatch, kind):
    monkeypatch.setattr(processes_talk, "count", lambda: 2)
    monkeypatch.setattr(processes_talk, "_LOST", [])
    gloo = "INTERNAL: Gloo all-reduce failed: pair.cc:547] Connection closed by peer [127.0.0.1]:1"
    with (
        pytest.raises(RunError, match=r"lost contact .* in generation 12 \(INTERNAL: Gloo .*start again with --resume"),
        processes.watching(12),
    ):
        raise kind(gloo)
    assert processes_talk.lost()


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), ValueError("gloo"), RunError("other")]
)
def test_other_errors_stay_what_they_are(monkeypatch, error):
    monkeypatch.setattr(processes_talk, "count", lambda: 2)
    monkeypatch.setattr(processes_talk, "_LOST", [])
    with pytest.raises(type(error)) as info, processes.watching(12):
        raise error
    assert info.value is error
    assert not processes_talk.lost()


def test_settings_that_differ_are_named_in_every_process(tmp_path):
    """Of processes that JAX joined; `test_processes_fit.py` has the same of those that `processes.start` joins."""
    for end in launch(tmp_path, 2, job=FIT, run=str(tmp_path / "run"), by_jax=True, own={"1": OTHER}):
        assert (end.status, end.log) == (1, None)
        assert_told(end.stderr)
    assert not (tmp_path / "run").exists()


LAST_WORDS = """
import os, signal, sys
from eggroll.training.processes.talk import last_words
last_words("at first")
last_words("it's over, 100%")
exec(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "it's over, 100%\n"),
        pytest.param("os.abort()", "it's over, 100%\n", marks=pytest.mark.slow),
        pytest.param("last_words('')", "", marks=pytest.mark.slow),
    ],
)
def test_last_words_come_however_the_process_ends(end, said):
    command = [sys.executable, "-c", LAST_WORDS, end]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": ""}
    assert subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stderr == said
