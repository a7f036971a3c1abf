"""The picture of a run: fitness and a held-out score against generation, from before training on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from eggroll.extras import needed_for
from eggroll.training.folder.files import whole_file
from eggroll.training.metrics import Record

with needed_for("pictures of runs"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

BLUE, GREEN, GREY = "#3465a4", "#2e8b57", "#555555"


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a run's metrics.

    Attributes:
        title: a line above the picture.
        fitness: what it is, as in `"−cross-entropy"`.
        score: name in the record of what is measured on held-out data.
        label: what that is called.
        unit: of what it is called; `"%"` for a share.
        error: name of the score's standard error; None: it has none.
        spent: name of a number that grows from record to record, for a second axis above; None: there is none.
    """

    title: str
    fitness: str
    score: str = "test_accuracy"
    label: str = "test accuracy"
    unit: str = "%"
    error: str | None = None
    spent: str | None = None


def draw_curve(records: Sequence[Record], path: Path, drawn: Drawn) -> None:
    """Draws a run's metrics into a PNG; draws nothing without records.

    Args:
        records: lines of `metrics.jsonl`; one of generation 0 may have a score alone.
        path: the picture.
        drawn: what of them.
    """
    records = [{name: x for name, x in r.items() if isinstance(x, int | float)} for r in records]
    if not [r for r in records if r["generation"]]:
        return
    # Not pyplot: a library must not choose the backend for the whole process.
    figure = Figure(figsize=(7.0, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle(drawn.title, fontsize=11, color=GREY)
    _fitness(above, records, drawn)
    _score(below, [r for r in records if r.get(drawn.score) is not None], drawn)
    below.set_xlabel("generation")
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.margins(x=0.01)
    if drawn.spent is not None:
        _spent(above, [r for r in records if drawn.spent in r], drawn.spent)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _fitness(axes: Axes, records: Sequence[Record], drawn: Drawn) -> None:
    usable = [r for r in records if r.get("fitness_mean") is not None and r.get("fitness_std") is not None]
    generation = [r["generation"] - 1 for r in usable]  # where its members were: the first is before training
    mean = [r["fitness_mean"] for r in usable]
    low = [r["fitness_mean"] - r["fitness_std"] for r in usable]
    high = [r["fitness_mean"] + r["fitness_std"] for r in usable]
    axes.fill_between(generation, low, high, color=BLUE, alpha=0.2, linewidth=0, label="± standard deviation")
    axes.plot(generation, mean, color=BLUE, linewidth=1.3, label="mean of the population")
    axes.set_ylabel(f"fitness = {drawn.fitness}")
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _score(axes: Axes, records: Sequence[Record], drawn: Drawn) -> None:
    axes.set_ylabel(f"{drawn.label} ({drawn.unit})" if drawn.unit else drawn.label)
    if not records:
        return
    scale, text = (100, "{:.1f} %") if drawn.unit == "%" else (1, "{:.3g}")
    generation = [r["generation"] for r in records]
    score = [scale * r[drawn.score] for r in records]
    axes.plot(generation, score, color=GREEN, linewidth=1.3, marker="o", markersize=3)
    if drawn.error is not None:
        error = [scale * (r.get(drawn.error) or 0) for r in records]
        axes.errorbar(generation, score, error, color=GREEN, linewidth=0, elinewidth=1, alpha=0.6)
    axes.annotate(
        text.format(score[-1]),
        (generation[-1], score[-1]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="right",
        color=GREEN,
    )


def _spent(axes: Axes, records: Sequence[Record], name: str) -> None:
    """A second axis above, with what was spent up to a generation."""
    if not records or records[-1][name] <= 0:
        return
    generation = np.array([0, *(r["generation"] for r in records)], float)
    spent = np.array([0, *(r[name] for r in records)], float)
    size, word = next((s, w) for s, w in ((1e6, "millions of "), (1e3, "thousands of "), (1, "")) if spent[-1] >= s)
    spent = spent / size + 1e-9 * generation  # strictly growing, as its inverse needs
    rate = spent[-1] / generation[-1]  # beyond the margins of the picture

    def forth(x: ArrayLike) -> np.ndarray:
        x = np.asarray(x)
        return np.interp(x, generation, spent) + rate * (np.minimum(x, 0) + np.maximum(x - generation[-1], 0))

    def back(x: ArrayLike) -> np.ndarray:
        x = np.asarray(x)
        return np.interp(x, spent, generation) + (np.minimum(x, 0) + np.maximum(x - spent[-1], 0)) / rate

    axes.secondary_xaxis("top", functions=(forth, back)).set_xlabel(f"{word}{name}", fontsize=9, color=GREY)


def draw_lines(lines: Mapping[str, Sequence[tuple[float, float]]], path: Path, labels: tuple[str, str]) -> None:
    """Draws one number against another into a PNG, a line for each run.

    Args:
        lines: of each run by its name, points `(x, y)`.
        path: the picture.
        labels: what x and y are.
    """
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in lines.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, linewidth=1.3, label=name, marker="o" if len(points) < 50 else None, markersize=3)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
