"""Curves of held-out reward against generated tokens: one a run, and their means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

GRID = 21  # points of a mean curve


class Point(NamedTuple):
    """An evaluation: after how many generated tokens and seconds, held-out reward, its standard error over prompts."""

    tokens: int
    seconds: float
    held_out: float
    error: float | None


@dataclass(frozen=True)
class Curve:
    """A run. Its first point is the model as it was."""

    method: str
    seed: int
    generations: int
    points: tuple[Point, ...]

    def at(self, tokens: float, name: str = "held_out") -> float:
        """A number of the points, between two of them on a straight line."""
        known = [point.tokens for point in self.points]
        return float(np.interp(tokens, known, [getattr(point, name) for point in self.points]))

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        numbers = {name: [getattr(point, name) for point in self.points] for name in Point._fields}
        return {name: getattr(self, name) for name in ("method", "seed", "generations")} | numbers


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; None for a single value."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), error


def row(curve: Curve) -> dict[str, Any]:
    """One run's line of the table."""
    first, last = curve.points[0], curve.points[-1]
    return {
        "method": curve.method,
        "seed": curve.seed,
        "generations": curve.generations,
        "tokens": last.tokens,
        "held_out_before": first.held_out,
        "error_before": first.error,
        "held_out_after": last.held_out,
        "error_after": last.error,
        "best_held_out": max(point.held_out for point in curve.points),
        "minutes": last.seconds / 60,
    }


def shared_tokens(curves: Sequence[Curve]) -> int:
    """The largest number of tokens that all runs have generated."""
    return min(curve.points[-1].tokens for curve in curves)


def summary(curves: Sequence[Curve]) -> dict[str, Any]:
    """For every method, at equal numbers of generated tokens: held-out reward and its rise, over seeds."""
    tokens = shared_tokens(curves)
    found: dict[str, Any] = {"tokens": tokens}
    for method in dict.fromkeys(curve.method for curve in curves):
        mine = [curve for curve in curves if curve.method == method]
        numbers = {
            "before": [curve.points[0].held_out for curve in mine],
            "held out": [curve.at(tokens) for curve in mine],
            "rise": [curve.at(tokens) - curve.points[0].held_out for curve in mine],
            "minutes": [curve.at(tokens, "seconds") / 60 for curve in mine],
        }
        for name, values in numbers.items():
            found[f"{method}, {name}"], error = mean_and_error(values)
            if name != "minutes":
                found[f"{method}, {name}, standard error"] = error
    return found


def series(curves: Sequence[Curve]) -> dict[str, Any]:
    """The mean curve of runs that differ in their seed, at equal numbers of tokens."""
    grid = np.linspace(0, shared_tokens(curves), GRID)
    pairs = [mean_and_error([curve.at(t) for curve in curves]) for t in grid]
    minutes = [float(np.mean([curve.at(t, "seconds") for curve in curves])) / 60 for t in grid]
    label = f"{curves[0].method}, {len(curves)} seed{'s' * (len(curves) > 1)}"
    means = {"held_out": [mean for mean, _ in pairs], "held_out_error": [error for _, error in pairs]}
    return {"label": label, "tokens": grid.tolist(), "minutes": minutes, **means}


def panels(means: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Held-out reward against tokens and against minutes."""
    axes = ("tokens", "by generated tokens"), ("minutes", "by time")
    return [{"title": title, "x": x, "y": "held_out", "series": list(means)} for x, title in axes]
