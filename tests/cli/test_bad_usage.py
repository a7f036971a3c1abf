"""Bad usage: status 2, one readable message, no traceback, and no run."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from eggroll import cli, start
from eggroll.commands.replay import Ledger
from eggroll.recipes.run_folder import load
from eggroll.training import read_metrics
from tests.cli.running import arrays, call, spawn, train

REJECTED = {
    "an odd population": (("--population", "7"), ("population=7", "even", "8")),
    "no population": (("--population", "0"), ("population=0", "at least 2")),
    "no noise": (("--sigma", "0"), ("sigma=0.0", "> 0")),
    "negative noise": (("--sigma=-0.1",), ("sigma=-0.1", "> 0")),
    "noise that is not a number": (("--sigma", "nan"), ("sigma=nan", "finite")),
    "no rank": (("--rank", "0"), ("rank=0", "at least 1")),
    "a rank beyond every layer": (("--rank", "9999"), ("9999", "rank")),
    "no generations": (("--generations", "0"), ("generations=0", "at least 1")),
    "no learning": (("--learning-rate", "0"), ("learning_rate=0.0", "> 0")),
    "more images than there are": (("--batch-size", "1438"), ("batch_size=1438", "1 to 1437")),
    "a change without a run to go on with": (("--force",), ("--force without --resume",)),
    "a negative seed": (("--seed=-1",), ("seed=-1", "at least 0")),
    "a seed beyond a key's": (("--seed", "2147483648"), ("seed=2147483648", "at most 2147483647")),
}
UNKNOWN = {
    "model": (("train", "--model", "rnn"), "rnn"),
    "distribution": (("train", "--distribution", "cauchy"), "cauchy"),
    "shaping": (("train", "--shaping", "best"), "best"),
    "option": (("train", "--momentum", "1"), "--momentum"),
    "command": (("test",), "test"),
    "number": (("train", "--population", "many"), "many"),
}

LAYERS = ("hidden1", "hidden2", "head")


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error output."""
    output = capsys.readouterr()
    assert output.err.startswith("eggroll: ") and output.err.count("\n") == 1
    assert "Traceback" not in output.out + output.err
    return output.err


@pytest.mark.parametrize("case", REJECTED)
def test_a_value_that_no_run_can_use(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, parts = REJECTED[case]
    assert train(tmp_path / "run", *options) == 2
    text = message(capsys)
    assert all(part in text for part in parts), text
    assert not list((tmp_path).glob("run/*"))


def test_tensorboard_that_is_missing_is_told_before_a_run_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert train(tmp_path, "--overwrite", "--tensorboard") == 2
    assert 'pip install "eggroll-jax[tensorboard]"' in message(capsys)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("when", ["on the way", "while importing"])
def test_an_interrupt_outside_of_a_run_is_a_line(
    when: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    class Module:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "eggroll.cli", Module() if when == "while importing" else cli)
    monkeypatch.setattr(cli, "main", interrupt)
    assert start.main() == 130
    assert message(capsys) == "eggroll: interrupted\n"


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_word_that_is_not_known(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, part = UNKNOWN[case]
    assert call(*arguments) == 2
    output = capsys.readouterr()
    assert part in output.err and "Traceback" not in output.err
    assert output.out == ""


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_folder_should_be(below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    assert train(tmp_path / "run" / below) == 2
    text = message(capsys)
    assert str(tmp_path / "run") in text and "there is a file where a folder is needed" in text and "--out" in text
    assert "make room" not in text
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


def test_a_folder_where_a_file_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    assert train(tmp_path) == 2
    assert "cannot write" in message(capsys)


LONG = "x" * 5000
TOO_LONG: dict[str, tuple[str, ...]] = {
    "out": ("train", "--out", LONG),
    "out of many short names": ("finetune", "--model", "m", "--task", "countdown", "--out", "x/" * 2500),
    "model": ("finetune", "--task", "countdown", "--model", LONG),
    "prompts_file": ("finetune", "--model", "m", "--reward", "math:sin", "--prompts-file", LONG),
    "model of an evaluation": ("evaluate", "--task", "countdown", "--model", LONG),
    "out of an evaluation": ("evaluate", "--task", "countdown", "--model", "m", "--out", LONG),
    "base": ("replay", LONG, "ledger.bin", "--out", "a.npz"),
    "ledger": ("ledger", LONG),
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_name_that_is_too_long(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*TOO_LONG[case]) == 2
    text = message(capsys)
    assert f"got {case.partition(' ')[0]}='x" in text and "255 bytes" in text and len(text) < 500


REFUSALS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "nothing can be written to that disk",
    errno.EACCES: "get the permission",
    errno.ENOTDIR: "a file where a folder is needed",
    errno.ENAMETOOLONG: "255 bytes a name",
    errno.EIO: "mend that",
}


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_what_the_disk_refuses_is_told_with_what_helps(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert train(tmp_path / "run") == 2
    text = message(capsys)
    assert os.strerror(number) in text and REFUSALS[number] in text and "--out" in text
    assert ("make room" in text) == (REFUSALS[number] == "make room")


def test_an_error_of_the_system_that_nothing_expects_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "some/where")

    monkeypatch.setitem(cli.RUN, Ledger, refuse)
    assert call("ledger", "l.bin") == 2
    assert "'some/where' (Permission denied); get the permission" in message(capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_without_permission(mode: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=mode)
    try:
        assert train(folder) == 2
        assert "Permission denied" in message(capsys)
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("method", ["exists", "mkdir", "open"])
def test_an_operating_system_that_refuses(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = getattr(Path, method)

    def refuse(self: Path, *arguments: object, **options: object) -> object:
        if self.is_relative_to(tmp_path / "run"):
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, method, refuse)
    assert train(tmp_path / "run") == 2
    assert "Permission denied" in message(capsys)


def test_no_finite_fitness_ends_the_run_and_keeps_the_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Noise of this size overflows in the second layer of every member.
    assert train(tmp_path / "run", "--sigma", "1e30", "--generations", "2") == 1
    assert "finite" in message(capsys)
    assert read_metrics(tmp_path / "run") == []
    assert not (tmp_path / "run" / "curve.png").exists()
    assert arrays(tmp_path / "run").keys() == {f"{x}/{y}" for x in LAYERS for y in ("bias", "kernel")}
    load(tmp_path / "run")


def test_the_command_itself_reports_bad_usage() -> None:
    done = spawn("train", "--population", "7")
    assert done.returncode == 2
    assert done.stderr.startswith("eggroll: got population=7") and "Traceback" not in done.stderr
    assert done.stdout == ""
