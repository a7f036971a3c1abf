"""`eggroll compare`: what of runs is drawn, what of their settings is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eggroll.training import curve
from eggroll.training.folder.integrity import begin_manifest, note_growing
from tests.cli.running import PNG, call

OPTIONS = {"model": "mlp", "population": 8, "sigma": 0.1, "batch_size": 4, "optimizer": {"name": "adam"}}


def run(folder: Path, *, lines: int = 3, metrics: dict | None = None, before: dict | None = None, **options) -> Path:
    """A run folder as commands leave it: line `g` has the fitness −1/g, and what else is said."""
    folder.mkdir(parents=True)
    config = {"options": OPTIONS | {"out": str(folder)} | options, "versions": {"jax": "0.10.2"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    records = [
        {"generation": g, "fitness_mean": -1 / g, "seconds": 2.0 * g, "tokens": 10 * g}
        | {name: x * g for name, x in (metrics or {}).items()}
        for g in range(1, lines + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    if before is not None:
        (folder / "evaluation.json").write_text(json.dumps({"before": before}), encoding="utf-8")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """What is drawn, beside drawing it."""
    calls, draw = [], curve.draw_lines

    def noted(lines, path, labels):
        calls.append((lines, labels))
        draw(lines, path, labels)

    monkeypatch.setattr(curve, "draw_lines", noted)
    return calls


@pytest.mark.parametrize(
    ("against", "first", "label"),
    [
        ("generations", {"a": 1, "b": 1}, "generation"),
        ("evaluations", {"a": 8, "b": 16}, "member evaluations"),
        ("seconds", {"a": 2, "b": 2}, "seconds, compilation included"),
        ("live_steps", {"a": 5, "b": 5}, "live_steps"),
    ],
)
def test_a_metric_is_drawn_against_what_was_spent(tmp_path, drawn, capsys, against, first, label):
    a = run(tmp_path / "a", metrics={"live_steps": 5})
    b = run(tmp_path / "b", metrics={"live_steps": 5}, population=16, optimizer={"name": "sgd"})
    assert call("compare", a, b, "--against", against, "--out", tmp_path / "c.png") == 0
    ((lines, labels),) = drawn
    assert {name: line[0] for name, line in lines.items()} == {name: (x, -1.0) for name, x in first.items()}
    assert labels == (label, "fitness_mean of the members; fitness = −cross-entropy")
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)
    printed = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in row] for row in printed]
    assert rows[:2] == [["population", "8", "16"], ["optimizer.name", "adam", "sgd"]]  # and no folder, no version
    assert rows[2:] == [
        ["generations made", "3", "3"],
        ["fitness_mean: first", "-1", "-1"],
        ["fitness_mean: last", "-0.33333", "-0.33333"],
        ["fitness_mean: largest", "-0.33333", "-0.33333"],
    ]


def test_the_value_before_training_comes_first(tmp_path, drawn):
    a = run(tmp_path / "a", metrics={"test_reward": 1.0}, before={"reward": 0.25}, max_tokens=4)
    b = run(tmp_path / "b", metrics={"test_accuracy": 0.5}, before={"test_accuracy": 0.125})
    assert call("compare", a, "--against", "tokens", "--out", tmp_path / "c.png") == 0
    assert call("compare", b, "--against", "evaluations", "--out", tmp_path / "d.png") == 0
    (tokens, first), (evaluations, second) = drawn
    assert tokens == {"a": [(0, 0.25), (10, 1.0), (20, 2.0), (30, 3.0)]}
    assert evaluations == {"b": [(0, 0.125), (8, 0.5), (16, 1.0), (24, 1.5)]}
    assert first == ("tokens of answers", "test_reward (mean of held-out prompts)")
    assert second == ("member evaluations", "test_accuracy (share of held-out images)")


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    a, b = run(tmp_path / "a", metrics={"test_accuracy": 0.1}), run(tmp_path / "b", metrics={"falls": -1.0})
    out = ("--out", tmp_path / "c.png")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "taken.png").write_text("mine")
    begin_manifest(run(tmp_path / "altered"))
    note_growing(tmp_path / "altered", "metrics.jsonl", 9, "the digest of other numbers")
    for arguments, words in (
        ((a, b, *out, "--metric", "test_accuracy"), ("test_accuracy", "which b has", "fitness_mean")),
        ((a, *out, "--against", "steps"), ("steps", "generations", "tokens")),
        ((b, *out, "--against", "falls"), ("falls", "does not grow")),
        ((a, a, *out), ("twice",)),
        ((tmp_path / "nothing", *out), ("nothing", "metrics.jsonl")),
        ((tmp_path / "none", *out), ("none", "metrics.jsonl")),
        ((run(tmp_path / "young", lines=0), *out), ("young", "no generation")),
        ((tmp_path / "altered", *out), ("metrics.jsonl is altered", "Restore it")),
        ((a, "--out", tmp_path / "c.pdf"), ("c.pdf", ".png")),
        ((a, "--out", tmp_path / "taken.png"), ("taken.png", "--overwrite")),
    ):
        assert call("compare", *arguments) == 2, arguments
        said = capsys.readouterr().err
        assert all(word in said for word in words) and said.count("\n") == 1, said
    assert not (tmp_path / "c.png").exists() and (tmp_path / "taken.png").read_text() == "mine"
    assert call("compare", a, "--out", tmp_path / "taken.png", "--overwrite") == 0
