"""bench.finetune: curves of runs, and what is said of them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import finetune
from bench.tools.finetune_curves import Curve, Point, mean_and_error, panels, row, series, shared_tokens, summary
from bench.tools.plots import draw
from tests.cli.running import call


def curve(method: str, seed: int, *points: tuple[int, float, float]) -> Curve:
    return Curve(method, seed, len(points) - 1, tuple(Point(*point, 0.5) for point in points))


RUNS = [
    curve("eggroll", 0, (0, 0.0, -90.0), (100, 60.0, -50.0), (220, 120.0, -20.0)),
    curve("eggroll", 1, (0, 0.0, -90.0), (200, 180.0, -40.0)),
    curve("full-rank", 0, (0, 0.0, -90.0), (400, 600.0, -70.0)),
]


def test_methods_are_compared_at_equal_tokens() -> None:
    """At 200 tokens, the fewest that a run ended with: on the line from −50 to −20, at the end, and half way."""
    assert shared_tokens(RUNS) == 200
    found = summary(RUNS)
    first = -50 + 30 * 100 / 120
    assert found["tokens"] == 200
    assert found["eggroll, held out"] == pytest.approx((first - 40) / 2)
    assert found["eggroll, held out, standard error"] == pytest.approx(abs(first + 40) / 2)  # s/√2 of two values
    assert found["eggroll, rise"] == pytest.approx((first + 90 + 50) / 2)
    assert found["full-rank, held out"] == pytest.approx(-80)
    assert found["full-rank, rise, standard error"] is None  # one seed
    assert found["eggroll, minutes"] == pytest.approx((60 + 60 * 100 / 120 + 180) / 2 / 60)


def test_mean_and_error_are_those_of_the_statistics() -> None:
    assert mean_and_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert mean_and_error([4.0]) == (4.0, None)


def test_the_mean_curve_ends_with_the_shortest_run() -> None:
    mean = series(RUNS[:2])
    assert mean["label"] == "eggroll, 2 seeds"
    assert (mean["tokens"][0], mean["held_out"][0], mean["held_out_error"][0]) == (0, -90, 0)
    assert mean["tokens"][-1] == 200
    assert mean["held_out"][-1] == pytest.approx(summary(RUNS)["eggroll, held out"])


def test_the_picture_shows_negative_rewards(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    draw(panels([series(RUNS[:2]), series(RUNS[2:])]), path, title="rewards below zero")
    assert path.read_bytes().startswith(b"\x89PNG")


def write_run(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps({"before": {"reward": -9.0, "error": 1.0}}))
    lines = [
        {"generation": 1, "tokens": 10, "seconds": 2.0, "test_reward": -8.0, "test_reward_error": 0.9},
        {"generation": 2, "tokens": 20, "seconds": 3.0},
        {"generation": 3, "tokens": 30, "seconds": 4.0, "test_reward": -5.0, "test_reward_error": 0.8},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = finetune.from_run(tmp_path, "eggroll", 7)
    assert found.points == (Point(0, 0.0, -9.0, 1.0), Point(10, 2.0, -8.0, 0.9), Point(30, 4.0, -5.0, 0.8))
    assert row(found) | {"held_out_after": -5.0, "tokens": 30, "generations": 3, "best_held_out": -5.0} == row(found)


def test_a_run_that_is_there_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends at once where nothing is left to do, and refuses other settings."""
    commands: list[list[str]] = []

    def command(given: list[str], **options: object) -> None:
        commands.append(given)
        write_run(Path(given[given.index("--out") + 1]))

    monkeypatch.setattr("subprocess.run", command)
    options = finetune.Options(model="folder", runs=tmp_path)
    write_run(tmp_path / "conciseness-eggroll-0")
    assert finetune.run(options, "eggroll", 0).points[-1].tokens == 30
    assert finetune.run(options, "eggroll", 1).seed == 1
    assert ["--resume" in each for each in commands] == [True, False]


def test_a_result_of_grpo_is_drawn_beside(tmp_path: Path) -> None:
    points = [
        {"round": 0, "tokens": 0, "seconds": 0.0, "held_out": -9.0, "held_out_error": 1.0},
        {"round": 5, "tokens": 50, "seconds": 6.0, "held_out": -7.0, "held_out_error": 0.5},
    ]
    file = tmp_path / "grpo.json"
    settings = {"model": "folder", "task": "conciseness", "system": "", "max_tokens": 24}
    file.write_text(json.dumps({"settings": settings, "series": [{"seed": 3, "points": points}]}))
    with pytest.raises(SystemExit, match=r"max_tokens=24 in .* and 9 here"):
        finetune.from_grpo(file, finetune.Options(model="folder", max_tokens=9))
    assert finetune.from_grpo(file, finetune.Options(model="folder")) == [
        Curve("grpo", 3, 5, (Point(0, 0.0, -9.0, 1.0), Point(50, 6.0, -7.0, 0.5)))
    ]


def test_a_model_is_asked_for() -> None:
    with pytest.raises(SystemExit, match="got no --model"):
        finetune.main([])


@pytest.mark.slow
def test_all_methods_are_run_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, where the script starts one for each."""

    def run(command: list[str], **options: object) -> None:
        assert command[:3] == [sys.executable, "-m", "eggroll"]
        assert call(*command[3:]) == 0

    monkeypatch.setattr(finetune, "subprocess", SimpleNamespace(run=run))
    out = tmp_path / "kept.json"
    finetune.main(["--quick", "--out", str(out)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.read_text()) == found and out.with_suffix(".png").exists()
    assert [(row["method"], row["seed"]) for row in found["rows"]] == [
        (method, 0) for method in ("eggroll", "full-rank", "activations")
    ]  # fmt: skip
    assert all(60 - 4 * 2 * 4 < row["tokens"] <= 60 for row in found["rows"])  # no generation more would be sure to fit
    assert len({row["held_out_before"] for row in found["rows"]}) == 1
