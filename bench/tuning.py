"""Do sigma and learning rate choose themselves well: against the best of a grid of both, at equal evaluations?

Six works: a classifier of the digits (`mlp`), the same with activations of ±1 (`sign`), a convolutional one (`cnn`), a
byte-level transformer, a linear regression whose inputs and weights are of odd sizes, and CartPole. Each is trained by
Adam under weight noise, with every sigma and rate of a grid, and with those that `ES.choose` chooses; what choosing
evaluates is taken off its generations. The score is the loss on held-out data, or the return; `share` is the gain over
the start, in units of the gain of the grid's best setting by the mean of all seeds.

A work's result is kept as soon as it is measured, and what is kept is not measured again; or what chose itself alone,
against the grid that is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax

import eggroll
from bench.tools.environment import device_slug
from bench.tools.finetune_curves import mean_and_error
from bench.tools.options import Common
from bench.tools.report import RESULTS, Report
from bench.tools.works import WORKS, Work

Name = Literal["mlp", "sign", "cnn", "transformer", "regression", "cartpole"]
SIGMAS, RATES = (0.005, 0.02, 0.08, 0.3, 1.2), (0.003, 0.01, 0.03, 0.1, 0.3)
TRIED = 64  # members by which settings are chosen, as `ES.step` does


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.tuning.

    Attributes:
        works: which.
        seeds: runs of every setting.
        sigmas: of the grid, in units of the work's weights.
        rates: likewise.
        again: what is measured though it is kept: nothing, what chooses itself, or all of it.
    """

    works: tuple[Name, ...] = get_args(Name)
    seeds: int = 3
    sigmas: tuple[float, ...] = SIGMAS
    rates: tuple[float, ...] = RATES
    again: Literal["nothing", "chosen", "all"] = "nothing"

    def reduced(self) -> Options:
        """Small enough to see in a minute that the script works."""
        return replace(self, works=("regression",), seeds=2, sigmas=(0.02, 0.3), rates=(0.03, 0.3))


@cache
def keys_of(seed: int) -> tuple[jax.Array, ...]:
    """For parameters, batches and noise."""
    return tuple(jax.random.split(jax.random.key(seed), 3))


def runner(work: Work) -> Callable[..., jax.Array]:
    """`(sigma, rate, falls, generations, seed's keys)` → score; `falls` is 1 where the rate falls to 0, else 0."""
    adam = optax.scale_by_adam()

    @jax.jit
    def run(sigma: Any, rate: Any, falls: Any, generations: Any, keys: tuple[jax.Array, ...]) -> jax.Array:
        start, batches, noise = keys
        estimate = eggroll.value_and_grad(
            lambda p, batch: -work.fitness(p, batch), population=work.population, sigma=sigma, shaping="zscore"
        )

        def one(now: Any, i: jax.Array) -> tuple[Any, None]:
            params, moments = now
            _, grads = estimate(params, work.batch(jax.random.fold_in(batches, i)), key=jax.random.fold_in(noise, i))
            updates, moments = adam.update(grads, moments)
            done = i / generations
            step = jnp.where(done < 1, rate * (1 - falls * done), 0)
            return (jax.tree.map(lambda x, u: x - step * u, params, updates), moments), None

        params = work.start(start)
        (params, _), _ = lax.scan(one, (params, adam.init(params)), jnp.arange(work.generations))
        return work.score(params)

    return run


def chosen(work: Work, seed: int) -> tuple[float, float, int]:
    """Sigma and learning rate that choose themselves, and the evaluations that it took."""
    start, batches, noise = keys_of(seed)
    es = eggroll.ES(population=work.population, sigma="auto", learning_rate="auto")
    params, batch, asked = work.start(start), work.batch(jax.random.fold_in(batches, 0)), 0

    def evaluate(members: eggroll.Members) -> jax.Array:
        nonlocal asked
        asked += len(members)
        return members.apply(work.fitness, batch)

    es.choose(es.init(params, noise), evaluate, members=TRIED)
    assert isinstance(es.sigma, float) and isinstance(es.learning_rate, float)
    return es.sigma, es.learning_rate, asked


def gridded(work: Work, run: Callable[..., jax.Array], options: Options) -> list[dict[str, Any]]:
    """A row for every sigma and rate of the grid."""
    rows = []
    for sigma in options.sigmas:
        for rate in options.rates:
            setting = sigma * work.unit, rate * work.unit, 0.0, float(work.generations)
            scores = [float(run(*setting, keys_of(seed))) for seed in range(options.seeds)]
            score, error = mean_and_error([s if math.isfinite(s) else -math.inf for s in scores])
            rows.append({"setting": "grid", "sigma": setting[0], "rate": setting[1], "score": score, "error": error})
    return rows


def measured(name: str, options: Options, kept: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one work, of a grid that is kept or measured now, and what matters of them."""
    work = WORKS[name]()
    run, seeds = runner(work), range(options.seeds)
    start = float(np.mean([work.score(work.start(keys_of(seed)[0])) for seed in seeds]))
    rows = [row for row in kept if row["setting"] == "grid"] or gridded(work, run, options)
    best = max(rows, key=lambda row: row["score"])
    choices = [chosen(work, seed) for seed in seeds]
    for label, falls in (("automatic", 0.0), ("automatic, falling", 1.0)):
        scores = [
            float(run(sigma, rate * (1 + falls), falls, work.generations - asked / work.population, keys_of(seed)))
            for seed, (sigma, rate, asked) in zip(seeds, choices, strict=True)
        ]
        score, error = mean_and_error(scores)
        sigma, rate = (float(np.median([each[i] for each in choices])) for i in (0, 1))
        rows.append({"setting": label, "sigma": sigma, "rate": rate * (1 + falls), "score": score, "error": error})
    for each in rows:
        each["share"] = (each["score"] - start) / (best["score"] - start)
    shares = {each["setting"]: round(each["share"], 3) for each in rows[-2:]}
    return rows, {"work": name, "start": start, "best": best["score"], "best_sigma": best["sigma"], **shares}


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = options.reduced() if options.quick else options
    for name in options.works:
        path = options.out or RESULTS / "tuning" / f"{name}-{device_slug()}.json"
        kept = json.loads(path.read_text()) if path.exists() and options.again != "all" else None
        if kept and options.again == "nothing":
            print(json.dumps(kept["summary"]))
            continue
        if kept and kept["settings"]["seeds"] != options.seeds:
            raise SystemExit(f"got --seeds {options.seeds} for a grid of {kept['settings']['seeds']}: use --again all.")
        rows, summary = measured(name, options, kept["rows"] if kept else [])
        report = Report("tuning", replace(options, out=None), rows, NOTES, summary)
        report.finish(quick=options.quick, out=None if options.quick and options.out is None else path)


NOTES = [
    "share: gain over the start, in units of that of the grid's best. automatic: sigma and rate as chosen, the median "
    "of the seeds' shown; falling: from twice the rate to 0. What choosing evaluated is taken off the generations.",
]

if __name__ == "__main__":
    main()
