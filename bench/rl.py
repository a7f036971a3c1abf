"""What does evolution come to in environments at equal live steps, beside PPO?

Every arm of ours plays an environment with the defaults of `eggroll rl` but for what its name says, for several seeds.
PPO (`bench.tools.ppo`) has the same policy.
The greedy return is measured in episodes of its own whenever a share of the steps is spent; a run that reaches a target
goes on counting as it is. Beside the returns: live steps until the target, and for evolution the time of a generation
beside rank 1's.

An environment's result is kept as soon as it is measured, and the picture is drawn of all that are kept.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np
import tyro

import eggroll
from bench.tools.environment import device_slug
from bench.tools.options import Common
from bench.tools.plots import draw
from bench.tools.ppo import PPO, SETTINGS
from bench.tools.ppo import Settings as OfPPO
from bench.tools.report import RESULTS, Report
from eggroll.rl.job import GREEDY, Task
from eggroll.rl.settings import Settings, settings_for
from eggroll.rl.step import HELD_OUT, episode_keys

ARMS: dict[str, dict[str, Any]] = {
    "rank 1": {},
    "rank 4": {"rank": 4},
    "full rank": {"rules": [(".*", eggroll.DenseRule())], "distribution": "normal"},
    "PPO": {},
}
OWN: dict[str, dict[str, Any]] = {  # of environments that `eggroll rl` has no defaults for
    "brax:inverted_double_pendulum": {"env_option": ("backend=spring",)},
    "gymnax:Breakout-MinAtar": {"policy": "cnn", "width": 128},
}


@dataclass(frozen=True)
class Options(Common):
    """Options of `bench.rl`.

    Attributes:
        envs: environments, by name.
        arms: what plays them.
        steps: live steps of a run.
        seeds: runs of an arm.
        points: measurements of a run.
        episodes: of a measurement.
    """

    envs: tuple[str, ...] = ("gymnax:CartPole-v1", "gymnax:Pendulum-v1")
    arms: tuple[str, ...] = tuple(ARMS)
    steps: int = 1_000_000
    seeds: int = 5
    points: int = 20
    episodes: int = 64


class Learner(Protocol):
    """A run of an arm."""

    def advance(self) -> int:
        """One update; live steps so far."""
        ...

    def greedy(self) -> float:
        """The mean return of the policy's best choices, in episodes that it does not learn from."""
        ...


class Evolved:
    """A run of evolution."""

    def __init__(self, arm: str, settings: Settings) -> None:
        self._task: Any = Task(settings)
        own = {name: x for name, x in self._task.es.options().items() if name in ("population", "sigma", "shaping")}
        if arm == "full rank":
            self._task.es = eggroll.ES(**own, **ARMS[arm], optimizer=self._task.es.optimizer)
        key = jax.random.key(settings.seed)
        self._state, self._carry = self._task.es.init(self._task.policy.params, key), self._task.rollouts.begin()

    def advance(self) -> int:
        """One generation."""
        task = self._task
        self._state, self._carry, metrics = task.rollouts(task.es, self._state, self._carry, ())
        jax.block_until_ready(self._state)
        return metrics["live_steps"]

    def greedy(self) -> float:
        """See `Learner`."""
        return self._task.evaluate(self._state, self._carry)[GREEDY]


class Backpropagated:
    """A run of PPO."""

    def __init__(self, settings: Settings) -> None:
        task = Task(settings)
        own = SETTINGS.get(settings.env, OfPPO())
        self._ppo = PPO(task.rollouts.environment, task.policy, own, task.rollouts.limit, settings.seed)
        self._keys = episode_keys(jax.random.key(settings.seed), HELD_OUT, 0, settings.evaluation_episodes)

    def advance(self) -> int:
        """One update."""
        return self._ppo.advance()

    def greedy(self) -> float:
        """See `Learner`."""
        return float(self._ppo.greedy(self._keys).mean())


def learner(arm: str, settings: Settings) -> Learner:
    """A run from its start."""
    if arm == "PPO":
        return Backpropagated(settings)
    return Evolved(arm, replace(settings, rank=ARMS[arm].get("rank", settings.rank)))


def measured(env: str, arm: str, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of the table, and the curve of its arm."""
    settings = replace(settings_for(env=env, **OWN.get(env, {})), evaluation_episodes=options.episodes)
    runs = [list(run(learner(arm, replace(settings, seed=i)), settings.target, options)) for i in range(options.seeds)]
    returns = np.array([[each["return"] for each in points if "return" in each] for points in runs])
    mean, error = returns.mean(0), returns.std(0, ddof=1) / np.sqrt(len(runs))
    seconds = float(np.median([points[-1]["seconds"] for points in runs]))
    row = {"env": env, "arm": arm, "return": round(float(mean[-1]), 1), "standard_error": round(float(error[-1]), 1)}
    row |= {"best": round(float(mean.max()), 1), "until_target": [points[-1]["until"] for points in runs]}
    at = np.linspace(options.steps / options.points, options.steps, options.points)
    curve = {"label": arm, "steps": at.tolist(), "return": mean.tolist(), "return_error": error.tolist()}
    return row | {"seconds": seconds}, curve | {"env": env, "seconds": seconds}


def run(learner: Learner, target: float | None, options: Options) -> Iterator[dict[str, Any]]:
    """The greedy return whenever a share of the steps is spent, and at last what the run took."""
    times, until, share = [], None, options.steps / options.points
    due = share
    while due <= options.steps * (1 + 1e-9):
        start = time.perf_counter()
        spent = learner.advance()
        times.append(time.perf_counter() - start)
        if target is not None and until is None and learner.greedy() >= target:
            until = spent
        while spent >= due and due <= options.steps * (1 + 1e-9):
            yield {"return": learner.greedy()}
            due += share
    yield {"until": until, "seconds": float(np.median(times[1:] or times))}


def table(env: str, options: Options) -> Report:
    """All arms of an environment."""
    rows, series = [], []
    for arm in options.arms:
        row, curve = measured(env, arm, options)
        rows.append(row)
        series.append(curve)
    for row in rows:
        seconds = row.pop("seconds")
        row["generation_over_first"] = None if row["arm"] == "PPO" else round(seconds / series[0]["seconds"], 2)
    return Report("rl", options, rows, NOTES, {}, series)


def main(argv: list[str] | None = None) -> None:
    """Plays and reports."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        reduced = {"envs": ("gymnax:CartPole-v1",), "steps": 4000, "seeds": 2, "points": 2}
        options = replace(options, **reduced)
    folder = options.out or RESULTS / "rl"
    for env in options.envs:
        path = folder / f"{re.sub('[^a-z0-9]+', '-', env.lower())}-{device_slug()}.json"
        report = table(env, replace(options, envs=(env,), out=None))
        report.finish(quick=options.quick, out=None if options.quick and options.out is None else path)
    kept = [json.loads(path.read_text())["series"] for path in sorted(folder.glob(f"*-{device_slug()}.json"))]
    if kept and not options.quick:
        panels = [{"title": each[0]["env"], "x": "steps", "y": "return", "series": each} for each in kept]
        draw(panels, folder / f"{device_slug()}.png", title="greedy return by live steps", columns=2)


NOTES = [
    "return: of the greedy policy at the end of all steps, mean ± standard error over seeds; best: the greatest mean "
    "of all measurements.",
    "until_target: live steps until a measurement after an update reaches the target, per seed; None: never.",
]

if __name__ == "__main__":
    main()
