"""How fast does the loss fall, for which noise and which population, and how far is that from backpropagation?

The handwritten digits with the MLP 64-256-256-10 of `eggroll train` (minibatches of 64, Adam along a cosine):
distribution, rank, population and sigma, one varied at a time around a default, and Adam with backpropagation on the
same model, the same minibatches in the same order and the same schedule. The learning rate of the default and that of
backpropagation are chosen from the same list by the final training loss of a seed that is not reported; so is that of
every population, since the noisier the direction, the shorter the best step. Other settings have the default's.

Measured are the training loss (all training images) and the test accuracy of the unperturbed network, against updates
and against seconds. Seconds are those of training alone: compilation is reported on its own, measuring is left out. A
level of accuracy counts as reached at the first measurement that shows it. Figures are means over seeds with the
standard error. A picture is kept beside the result.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tyro

from bench.tools.environment import device_slug
from bench.tools.options import Common
from bench.tools.plots import draw
from bench.tools.report import RESULTS, Report
from bench.tools.training import Curve, Setting, Trainer, tune

LEVELS = (0.8, 0.9, 0.95)  # test accuracies to reach
TUNING_SEED = 1000


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.quality.

    Attributes:
        generations: updates of every run.
        every: updates between two measurements.
        seeds: runs of every setting.
        batch_size: images in a minibatch.
        distributions: to compare; the first is the default.
        ranks: to compare; the first is the default.
        populations: to compare; the first is the default.
        sigmas: to compare; the first is the default.
        rates: learning rates to choose from.
    """

    generations: int = 40
    every: int = 4
    seeds: int = 3
    batch_size: int = 64
    distributions: tuple[str, ...] = ("rademacher", "normal")
    ranks: tuple[int, ...] = (1, 4, 16)
    populations: tuple[int, ...] = (1024, 64, 4096)
    sigmas: tuple[float, ...] = (0.02, 0.01, 0.05)
    rates: tuple[float, ...] = (0.01, 0.02, 0.04)

    def reduced(self) -> Options:
        """Small enough to see in seconds that the script works."""
        return replace(
            self, generations=4, every=2, seeds=2, ranks=(1, 2), populations=(16, 8), sigmas=(0.02, 0.05), rates=(0.03,)
        )

    @property
    def factors(self) -> dict[str, tuple]:
        """Factor → its values, the default first."""
        return {
            "distribution": self.distributions,
            "rank": self.ranks,
            "population": self.populations,
            "sigma": self.sigmas,
        }


@dataclass(frozen=True)
class Case:
    """One line of the table: a setting that differs from the default in one factor."""

    factor: str
    value: str
    setting: Setting


@dataclass(frozen=True)
class Measured:
    """A case with its runs, one a seed."""

    case: Case
    curves: tuple[Curve, ...]

    def mean(self, number: Callable[[Curve], float | None]) -> tuple[float | None, float | None]:
        """Mean over seeds and its standard error; None where a seed has no such number, or where there is one seed."""
        values = [number(curve) for curve in self.curves]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None, None
        error = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
        return float(np.mean(known)), error


def cases(options: Options) -> list[Case]:
    """The default, every factor varied on its own, and backpropagation; learning rates not yet chosen."""
    shared = {"generations": options.generations, "batch_size": options.batch_size, "learning_rate": options.rates[0]}
    default = Setting(**{name: values[0] for name, values in options.factors.items()}, **shared)
    found = [Case("default", "default", default)]
    for name, values in options.factors.items():
        found += [Case(name, str(value), replace(default, **{name: value})) for value in values[1:]]
    return [*found, Case("method", "backpropagation", replace(default, method="backpropagation"))]


def measure(options: Options, say: Callable[[str], None]) -> list[Measured]:
    """Chooses learning rates and runs every case with every seed."""
    measured: list[Measured] = []
    for case in cases(options):
        start = time.perf_counter()
        if case.factor in ("default", "population", "method"):
            setting, tried = tune(case.setting, options.rates, TUNING_SEED)
            say(f"{case.factor} {case.value}: loss by learning rate { ({r: round(x, 3) for r, x in tried.items()}) }")
        else:
            setting = replace(case.setting, learning_rate=measured[0].case.setting.learning_rate)
        trainer = Trainer(setting)
        curves = tuple(trainer.run(seed, options.every) for seed in range(options.seeds))
        measured.append(Measured(replace(case, setting=setting), curves))
        say(f"{case.factor} {case.value}: {time.perf_counter() - start:.1f} s with tuning, compilation and measuring")
    return measured


def row(measured: Measured) -> dict[str, Any]:
    """The case's line of the table."""
    setting, case = measured.case.setting, measured.case
    loss, loss_error = measured.mean(lambda curve: curve.points[-1].loss)
    accuracy, accuracy_error = measured.mean(lambda curve: curve.points[-1].accuracy)
    seconds, _ = measured.mean(lambda curve: curve.points[-1].seconds)
    assert seconds is not None
    return {
        "factor": case.factor,
        "value": case.value,
        "learning_rate": setting.learning_rate,
        "loss": loss,
        "loss_error": loss_error,
        "accuracy": accuracy,
        "accuracy_error": accuracy_error,
        "seconds": seconds,
        "ms_per_update": 1000 * seconds / setting.generations,
        **{f"s_to_{level:.0%}": measured.mean(lambda c, a=level: c.seconds_to(a))[0] for level in LEVELS},
        "compile_s": measured.curves[0].compile_seconds,
    }


def distance(evolution: Measured, backpropagation: Measured) -> dict[str, Any]:
    """What evolution is behind: after equal updates, after equal seconds, and in seconds to levels of accuracy."""
    both = {"evolution": row(evolution), "backpropagation": row(backpropagation)}
    updates = evolution.case.setting.generations
    found: dict[str, Any] = {}
    for name in ("loss", "accuracy", "seconds"):
        found |= {f"{name} after {updates} updates, {method}": values[name] for method, values in both.items()}
    equal = both["backpropagation"]["seconds"]
    found["loss of evolution in the seconds that backpropagation takes for all updates"] = evolution.mean(
        lambda curve: curve.at_seconds(equal).loss
    )[0]
    found["updates of evolution in those seconds"] = equal / both["evolution"]["seconds"] * updates
    for level in LEVELS:
        found |= {f"seconds to {level:.0%}, {method}": values[f"s_to_{level:.0%}"] for method, values in both.items()}
    return found


def series(measured: Measured, label: str) -> dict[str, Any]:
    """Mean curves of a case with their standard errors."""
    points = range(len(measured.curves[0].points))
    means = {
        name: [measured.mean(lambda curve, i=i, name=name: getattr(curve.points[i], name)) for i in points]
        for name in ("generation", "seconds", "loss", "accuracy")
    }
    errors = {f"{name}_error": [error for _, error in means[name]] for name in ("loss", "accuracy")}
    return {"label": label, **{name: [mean for mean, _ in pairs] for name, pairs in means.items()}, **errors}


def panels(measured: Sequence[Measured], factors: dict[str, tuple]) -> list[dict[str, Any]]:
    """The picture: loss against updates for every factor, then evolution beside backpropagation."""
    default, backpropagation = measured[0], measured[-1]
    found = []
    for name, values in factors.items():
        lines = [series(default, f"{values[0]} (default)")]
        lines += [series(m, m.case.value) for m in measured if m.case.factor == name]
        found.append({"title": name, "x": "generation", "y": "loss", "series": lines})
    populations = [series(m, f"population {m.case.value}") for m in measured if m.case.factor == "population"]
    lines = [series(default, "evolution, default"), *populations, series(backpropagation, "Adam with backpropagation")]
    for x, y in (("generation", "loss"), ("seconds", "loss"), ("generation", "accuracy"), ("seconds", "accuracy")):
        title = f"evolution and backpropagation: {'updates' if x == 'generation' else x}"
        found.append({"title": title, "x": x, "y": y, "series": lines})
    return found


def report(options: Options, measured: Sequence[Measured]) -> Report:
    """The table, the distance from backpropagation, and the curves."""
    found = Report("quality", options)
    found.rows = [row(one) for one in measured]
    found.summary = distance(measured[0], measured[-1])
    found.series = [series(one, f"{one.case.factor} {one.case.value}") for one in measured]
    found.notes = [
        f"Loss and accuracy after {options.generations} updates, mean of {options.seeds} seeds and standard error; "
        f"measured every {options.every} updates.",
        "Seconds are those of training alone; compilation is in the last column, once for all seeds.",
        f"Learning rates from {options.rates}, chosen for the default, every population and backpropagation.",
    ]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = options.reduced() if options.quick else options
    measured = measure(options, say=lambda line: print(line, flush=True))
    kept = options.out or (None if options.quick else RESULTS / "quality" / f"{device_slug()}.json")
    if kept is not None:
        picture = pathlib.Path(kept).with_suffix(".png")
        title = f"Handwritten digits, MLP, mean of {options.seeds} seeds with the standard error"
        draw(panels(measured, options.factors), picture, title=title)
    report(options, measured).finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
