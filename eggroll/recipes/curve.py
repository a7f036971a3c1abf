"""The picture of a run: fitness and test accuracy against generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, GREEN, GREY = "#3465a4", "#2e8b57", "#555555"


def draw_curve(records: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draws a run's metrics into a PNG; draws nothing without records.

    Args:
        records: lines of `metrics.jsonl`.
        path: the picture.
        title: a line above it.
    """
    if not records:
        return
    # Not pyplot: a library must not choose the backend for the whole process.
    figure = Figure(figsize=(7.0, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title, fontsize=11, color=GREY)
    _fitness(above, records)
    _accuracy(below, [r for r in records if r.get("test_accuracy") is not None])
    below.set_xlabel("generation")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.margins(x=0.01)
    figure.savefig(path, dpi=150)


def _fitness(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    usable = [r for r in records if r["fitness_mean"] is not None and r["fitness_std"] is not None]
    generation = [r["generation"] for r in usable]
    mean = [r["fitness_mean"] for r in usable]
    low = [r["fitness_mean"] - r["fitness_std"] for r in usable]
    high = [r["fitness_mean"] + r["fitness_std"] for r in usable]
    axes.fill_between(generation, low, high, color=BLUE, alpha=0.2, linewidth=0, label="± standard deviation")
    axes.plot(generation, mean, color=BLUE, linewidth=1.3, label="mean of the population")
    axes.set_ylabel("fitness")
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _accuracy(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    axes.set_ylabel("test accuracy (%)")
    if not records:
        return
    generation = [r["generation"] for r in records]
    percent = [100 * r["test_accuracy"] for r in records]
    axes.plot(generation, percent, color=GREEN, linewidth=1.3, marker="o", markersize=3)
    axes.annotate(
        f"{percent[-1]:.1f} %",
        (generation[-1], percent[-1]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="right",
        color=GREEN,
    )
