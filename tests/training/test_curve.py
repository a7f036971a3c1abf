"""The picture of a run begins before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes

from eggroll.training.curve import Drawn, draw_curve


def test_fitness_is_drawn_where_its_members_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of generation 1 around the parameters that the run began with: at 0, as a score of generation 0 is."""
    drawn, plot = [], Axes.plot

    def noted(axes: Axes, x: list[int], *rest: object, **options: object) -> object:
        drawn.append(x)
        return plot(axes, x, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", noted)
    records = [{"generation": 0, "test_accuracy": 0.1}]
    records += [{"generation": g, "fitness_mean": -1.0 / g, "fitness_std": 0.1, "test_accuracy": 0.5} for g in (1, 2)]
    draw_curve(records, tmp_path / "curve.png", Drawn("run", fitness="−loss"))
    assert drawn == [[0, 1], [0, 1, 2]]
