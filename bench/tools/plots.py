"""Pictures of curves: panels of lines with bands of one standard error."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#3465a4", "#2e8b57", "#c17d11", "#a40000", "#75507b", "#555555")

Series = dict[str, Any]  # label, and for the axes of its panel: x, y and y_error
LABELS = {
    "seconds": "seconds, without compilation",
    "loss": "training loss",
    "accuracy": "test accuracy",
    "tokens": "tokens generated in training",
    "evaluations": "forward passes of a minibatch",
    "held_out": "held-out reward",
    "steps": "live steps",
    "return": "greedy return",
}


def draw(panels: Sequence[dict[str, Any]], path: pathlib.Path, *, title: str, columns: int = 4) -> None:
    """Draws curves with bands of one standard error into a PNG.

    Args:
        panels: each has `title`, `x` and `y` (names of the numbers of a series) and `series`. Loss, seconds and
            evaluations have logarithmic axes.
        path: the picture; its folder is made.
        title: a line above it.
        columns: panels beside each other.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which would choose a backend for the whole process
    figure.suptitle(title, fontsize=12)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_visible(False)
    for panel, axes in zip(panels, grid, strict=False):
        axes.set_visible(True)
        _panel(axes, panel)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _panel(axes: Axes, panel: dict[str, Any]) -> None:
    x, y = panel["x"], panel["y"]
    for colour, series in zip(COLOURS, panel["series"], strict=False):
        points = [(a, m, e or 0.0) for a, m, e in zip(series[x], series[y], series[f"{y}_error"], strict=True)]
        if x == "seconds":
            points = [point for point in points if point[0] > 0]  # the axis is logarithmic
        at, mean, error = zip(*points, strict=True)
        axes.plot(at, mean, color=colour, linewidth=1.4, marker="o", markersize=2.5, label=series["label"])
        least = 1e-9 if y == "loss" else -math.inf
        low = [max(m - e, least) for m, e in zip(mean, error, strict=True)]
        high = [m + e for m, e in zip(mean, error, strict=True)]
        axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    if x in ("seconds", "evaluations"):
        axes.set_xscale("log")
    if y == "loss":
        axes.set_yscale("log")
    axes.set_title(panel["title"], fontsize=10)
    axes.set_xlabel(LABELS.get(x, x))
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=6)  # so that long numbers stay apart
    axes.set_ylabel(LABELS.get(y, y))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, fontsize=8)
