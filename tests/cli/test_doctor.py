"""`eggroll doctor`: every kernel is tried, and a report says what is used and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import pytest

from eggroll.ops import registry, trials
from tests.cli.running import call

PLUGIN = """
from eggroll.kernels import register
from eggroll.ops.operations import rank_update_reference

@register("rank_update", "theirs", platforms=("cpu",))
def theirs(weights, left, right, *, accumulator=None):
    if not hasattr(left, "distribution"):
        raise NotImplementedError("arrays")
    if str(left.dtype) == "bfloat16":
        raise NotImplementedError("half precision")
    found = rank_update_reference(weights, left, right, accumulator=accumulator)
    return found + 1 if left.distribution == "normal" else found
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that registers a kernel for CPUs, right for one kind of noise."""
    registry.implementations("rank_update")
    copy = {name: dict(known) for name, known in registry._OPERATIONS.items()}
    monkeypatch.setattr(registry, "_OPERATIONS", copy)
    monkeypatch.setattr(trials, "_CRASHED", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_kernels.py").write_text(PLUGIN)
    yield "their_kernels"
    sys.modules.pop("their_kernels", None)


def test_a_report_says_what_is_wrong_and_what_is_used(
    plugin: str, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    assert call("doctor", "--plugin", plugin, "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["versions"]["jax"] == jax.__version__ and found["devices"][0]["kind"] == "cpu"
    assert err.count("eggroll: trying theirs of rank_update") == len(found["kernels"]) == 6
    states = {each["kind"]: each["state"] for each in found["kernels"]}
    assert states["rademacher, float32, rank 1"] == "right"
    assert states["normal, float32, rank 1"] == "wrong"
    assert {states[kind] for kind in states if "bfloat16" in kind or "arrays" in kind} == {"not checked"}
    used = {each["kind"]: each for each in found["chosen"] if each["operation"] == "rank_update"}
    assert used["rademacher, float32, rank 1"]["implementation"] == "theirs"
    assert used["normal, float32, rank 1"]["implementation"] == "reference"
    assert "100.00% of the numbers beyond" in used["normal, float32, rank 1"]["why"]
    assert "half precision" in used["normal, bfloat16, rank 1"]["why"]
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2  # so that runs need not try them


def test_without_kernels_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 0
    text = capsys.readouterr().out
    assert f"jax {jax.__version__}" in text and "plain XLA for everything" in text


def test_devices_that_do_not_start_are_in_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(jax, "devices", broken)
    assert call("doctor", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert "RuntimeError: no driver" in found["error"] and found["versions"]["jax"]


@pytest.mark.parametrize(
    ("arguments", "part"), [(("--rank", "0"), "rank of 0"), (("--plugin", "no_such"), "'no_such'")]
)
def test_bad_usage(arguments: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", *arguments) == 2
    assert part in capsys.readouterr().err
