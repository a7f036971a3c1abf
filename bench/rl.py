"""What does evolution come to in environments, at equal live steps: rank 1, rank 4 and full rank?

Every arm plays an environment with the defaults of `eggroll rl` but for what its name says, for several seeds. The
greedy return is measured in episodes of its own whenever a share of the steps is spent; a run that reaches a target
goes on counting as it is. Beside the returns: live steps until the target, and time of a generation beside rank 1's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import tyro

import eggroll
from bench.tools.options import Common
from bench.tools.plots import draw
from bench.tools.report import RESULTS, Report
from eggroll.rl.job import GREEDY, Task
from eggroll.rl.settings import Settings, settings_for

ARMS: dict[str, dict[str, Any]] = {"rank 1": {"rank": 1}, "rank 4": {"rank": 4}, "full rank": {}}
EVERYTHING = [(".*", eggroll.DenseRule())]


@dataclass(frozen=True)
class Options(Common):
    """Options of `bench.rl`.

    Attributes:
        envs: environments, by name.
        steps: live steps of a run.
        seeds: runs of an arm.
        points: measurements of a run.
        episodes: of a measurement.
    """

    envs: tuple[str, ...] = ("gymnax:CartPole-v1", "gymnax:Pendulum-v1")
    steps: int = 1_000_000
    seeds: int = 5
    points: int = 20
    episodes: int = 64


def main(argv: list[str] | None = None) -> None:
    """Plays and reports."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = Options(quick=True, out=options.out, envs=("gymnax:CartPole-v1",), steps=4000, seeds=2, points=2)
    rows, series, panels = [], [], []
    for env in options.envs:
        found = [measured(env, arm, options) for arm in ARMS]
        for row, curve in found:
            row["generation_over_rank_1"] = round(row.pop("seconds") / found[0][1]["seconds"], 2)
            rows.append(row)
            series.append(curve)
        panels.append({"title": env, "x": "steps", "y": "return", "series": [curve for _, curve in found]})
    report = Report("rl", options, rows, NOTES, {}, series)
    report.finish(quick=options.quick, out=options.out)
    if not options.quick and options.out is None:
        draw(panels, RESULTS / "rl" / "returns.png", title="greedy return by live steps", columns=2)


NOTES = [
    "Returns are those of the greedy policy, mean ± standard error over seeds, at the end of all steps.",
    "until_target: live steps until a measurement after a generation reaches the target, per seed; None: never.",
]


def measured(env: str, arm: str, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of the table, and the curve of its arm."""
    settings = replace(settings_for(env), **ARMS[arm], evaluation_episodes=options.episodes)
    runs = [list(run(replace(settings, seed=seed), arm, options)) for seed in range(options.seeds)]
    returns = np.array([[each["return"] for each in points if "return" in each] for points in runs])
    mean, error = returns.mean(0), returns.std(0, ddof=1) / np.sqrt(len(runs))
    seconds = float(np.median([points[-1]["seconds"] for points in runs]))
    row = {"env": env, "arm": arm, "return": round(float(mean[-1]), 1), "standard_error": round(float(error[-1]), 1)}
    row |= {"until_target": [points[-1]["until"] for points in runs], "seconds": seconds}
    at = np.linspace(options.steps / options.points, options.steps, options.points)
    curve = {"label": arm, "steps": at.tolist(), "return": mean.tolist(), "return_error": error.tolist()}
    return row, curve | {"env": env, "seconds": seconds}


def run(settings: Settings, arm: str, options: Options) -> Iterator[dict[str, Any]]:
    """The greedy return whenever a share of the steps is spent, and at last what the run took."""
    task = Task(settings)
    if arm == "full rank":
        given = {name: x for name, x in task.es.options().items() if name in ("population", "sigma", "shaping")}
        task.es = eggroll.ES(**given, optimizer=task.es.optimizer, rules=EVERYTHING)
    state, carry = task.es.init(task.policy.params, jax.random.key(settings.seed)), task.rollouts.begin()
    spent, times, until, share = 0, [], None, options.steps / options.points
    due = share
    while due <= options.steps * (1 + 1e-9):
        start = time.perf_counter()
        state, carry, metrics = task.rollouts(task.es, state, carry, ())
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
        spent = metrics["live_steps"]
        if settings.target is not None and until is None and task.evaluate(state, carry)[GREEDY] >= settings.target:
            until = spent
        while spent >= due and due <= options.steps * (1 + 1e-9):
            yield {"return": task.evaluate(state, carry)[GREEDY]}
            due += share
    yield {"until": until, "seconds": float(np.median(times[1:] or times))}


if __name__ == "__main__":
    main()
