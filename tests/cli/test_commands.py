"""Help, version and `eggroll explain`."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version
from typing import get_args

import pytest

from eggroll.recipes.models import build
from eggroll.recipes.run_folder import arrays_of
from eggroll.recipes.settings import Model
from eggroll.start import main
from tests.cli.running import call, spawn
from tests.quick import quickest

STATISTICS = ("/mean", "/var")  # of batch normalisation: not parameters


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_that_of_the_package(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(option) == 0
    assert capsys.readouterr().out == f"eggroll {version('eggroll-jax')}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_without_arguments_there_is_help(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("usage: eggroll", "train", "explain", "--version"))


def test_the_help_of_train_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--help") == 0
    text = capsys.readouterr().out
    options = "model population rank sigma generations learning-rate batch-size distribution shaping seed out overwrite"
    assert all(f"--{option}" in text for option in options.split())
    assert "rademacher" in text and "centered_rank" in text and "runs/digits-MODEL" in text


@pytest.mark.parametrize("model", quickest(get_args(Model), "mlp", "cnn"))
def test_explain_prints_every_parameter(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("explain", "--model", model) == 0
    text = capsys.readouterr().out
    printed = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    paths = [path for path in arrays_of(build(model, 0)) if not path.endswith(STATISTICS)]
    assert sorted(printed) == sorted(paths)
    assert "rank 1" in text and "random numbers" in text


def test_explain_counts_the_numbers_of_a_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("explain", "--rank", "3") == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    row = next(row for row in rows if "head/kernel" in row)
    inputs, outputs = map(int, next(cell for cell in row if cell.endswith("x10")).split("x"))
    assert "rank 3" in row
    assert f"{3 * (inputs + outputs):,}" in row


@pytest.mark.parametrize(("rank", "part"), [("0", "rank"), ("9999", "9999")])
def test_explain_says_what_is_wrong_with_a_rank(rank: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("explain", "--rank", rank) == 2
    error = capsys.readouterr().err
    assert error.startswith("eggroll: ") and part in error and error.count("\n") == 1


def test_the_arguments_default_to_those_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["eggroll", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("eggroll ")


def test_the_console_script_begins_where_the_module_does() -> None:
    (script,) = entry_points(group="console_scripts", name="eggroll")
    assert script.load() is main


@pytest.mark.slow
def test_the_module_is_a_command() -> None:
    done = spawn("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"eggroll {version('eggroll-jax')}\n", "")
