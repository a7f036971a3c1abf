"""The curve, the progress shown on the way, and the models by name."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from eggroll.recipes.digits import SHOWN
from eggroll.recipes.models import build
from eggroll.recipes.run_folder import arrays_of
from eggroll.training import progress
from eggroll.training.curve import Drawn, draw_curve
from eggroll.training.progress import LINES, Meter, Shown


def record(generation: int, **more: Any) -> dict[str, Any]:
    mean = -2.0 + 0.01 * generation
    return {
        "generation": generation,
        "fitness_mean": mean,
        "fitness_std": 0.1,
        "members_per_second": 100.0,
        **more,
    }


def picture(path: Path, records: list[dict[str, Any]]) -> np.ndarray:
    draw_curve(records, path, Drawn("a run", "−loss"))
    return matplotlib.image.imread(path)


def test_the_curve_shows_its_records(tmp_path: Path) -> None:
    short = [record(1, test_accuracy=0.1)]
    long = [record(g, test_accuracy=g / 40) for g in range(1, 40)]
    one, many = picture(tmp_path / "one.png", short), picture(tmp_path / "many.png", long)
    assert one.shape == many.shape and not np.array_equal(one, many)


def test_the_curve_bears_gaps(tmp_path: Path) -> None:
    gap = {"fitness_mean": None, "fitness_std": None}
    assert picture(tmp_path / "gaps.png", [record(1), record(2, **gap), record(3)]).std() > 0
    assert picture(tmp_path / "nothing.png", [record(1, **gap)]).std() > 0


def test_there_is_no_curve_of_nothing(tmp_path: Path) -> None:
    draw_curve([], tmp_path / "none.png", Drawn("a run", "−loss"))
    assert not (tmp_path / "none.png").exists()


def shown(generations: int, *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=150, force_terminal=terminal, color_system=None)
    with Meter(console, generations, "mlp", SHOWN) as meter:
        meter.update({"generation": 0, "test_accuracy": 0.123})
        for generation in range(1, generations + 1):
            meter.update(record(generation))
    return file.getvalue()


def test_progress_without_a_terminal_is_a_few_lines() -> None:
    lines = shown(1005, terminal=False).strip().splitlines()  # some versions of rich end with an empty line
    assert LINES <= len(lines) <= LINES + 3
    assert lines[0].startswith("generation 0/1005") and "12.3%" in lines[0]
    assert lines[-1] == "generation 1005/1005  fitness 8.050  accuracy 12.3%  100 members/s"


def test_a_resumed_run_says_so_first() -> None:
    file = io.StringIO()
    with Meter(Console(file=file, width=150), 1005, "mlp", SHOWN) as meter:
        meter.update({"generation": 7})
        meter.update(record(8))
    assert file.getvalue().strip() == "generation 7/1005  resuming after 7 generations  compiling"


def test_a_goal_that_is_nearer_than_the_last_generation_is_what_progress_is_told_of() -> None:
    file = io.StringIO()
    with Meter(Console(file=file, width=150), 1000, "mlp", replace(SHOWN, goal=("tokens", 2000))) as meter:
        meter.update({"generation": 0})
        for generation in range(1, 201):
            meter.update(record(generation, tokens=9 * generation))
    lines = file.getvalue().strip().splitlines()
    assert lines[0].startswith("generation 0, tokens 0/2,000") and lines[-1].startswith(
        "generation 200, tokens 1,800/2,000"
    )
    terminal = io.StringIO()
    console = Console(file=terminal, width=150, force_terminal=True, color_system=None)
    with Meter(console, 1000, "mlp", replace(SHOWN, goal=("tokens", 2000))) as meter:
        meter.update(record(1, tokens=2100))
    assert "generation 1, tokens 2,000/2,000" in terminal.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_follows_the_last_generations_however_long_they_are(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, file = 1000.0, io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    console = Console(file=file, width=150, force_terminal=terminal, color_system=None)
    with Meter(console, 200, "mlp", replace(SHOWN, goal=("tokens", 1000))) as meter:
        meter.update({"generation": 0})
        for generation in range(1, 41):
            clock += 500 if generation == 1 else 200 if generation < 20 else 90  # compilation; slow; faster
            meter.update(record(generation, tokens=20 * generation))
            if generation == 1:
                assert "left" not in meter.status()
    assert meter.status().endswith("0:15:00 left")  # 10 of 50 generations at 90 s: tokens end the run
    assert "0:15:00 left" in file.getvalue()


def test_progress_on_a_terminal_is_a_bar() -> None:
    text = shown(30, terminal=True)
    assert all(part in text for part in ("mlp", "30/30", "fitness -1.700", "accuracy 12.3%", "100 members/s"))
    assert "generation 30" not in text


def test_the_first_generation_does_not_count_for_the_speed() -> None:
    console = Console(file=io.StringIO())
    meter = Meter(console, 3, "mlp", SHOWN)
    meter.update({"generation": 0})
    meter.update(record(1, members_per_second=0.1))
    assert "members/s" not in meter.status()
    for generation, speed in ((2, 100.0), (3, 300.0)):
        meter.update(record(generation, members_per_second=speed))
    assert meter.status().endswith("150 members/s")  # two generations of 100 members take 1 s and 1/3 s


def test_a_seed_decides_the_initial_parameters() -> None:
    first, again, other = (arrays_of(build("mlp", seed))["head/kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_unknown_model_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="got model='rnn'; one of 'mlp', 'cnn', 'transformer', 'sign' is required"):
        build("rnn", 0)


def test_a_line_does_not_wrap_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with Meter(Console(file=file, width=80), 2, "mlp", Shown({"reading": "[{:s}]"})) as meter:
        for generation in range(3):
            meter.update(record(generation, reading="long " * 40))
    lines = file.getvalue().splitlines()
    assert [line.partition("  ")[0] for line in lines] == [f"generation {g}/2" for g in range(3)]
    assert all(len(line) > 200 for line in lines)
