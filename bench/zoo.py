"""What does a step cost for models in which a weight meets something before its input?

Weight norm, standardised convolutions, merged adapters, complex scans, routed experts, relative positions, fixed
points, neural ODEs (with `diffrax`), hypernetworks and tied kernels, each in `bench.tools.zoo` beside the plain layer
that has the same parameters and products. `ratio` is the step of the model over the step of the plain layer, `forward`
the same of one forward pass: what of the ratio is the model's own. It states ratios, and fails nothing.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
import tyro

import eggroll
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import interleave
from bench.tools.zoo import ZOO, Case


@dataclass(frozen=True)
class Options(Common):
    """What does a step cost for models in which a weight meets something before its input?

    Attributes:
        width: inputs and outputs of a layer, channels of a convolution.
        rows: of input.
        population: members.
        rounds: turns of each candidate.
        models: a pattern of the names of those to measure: a long run may be made in parts. Those that the result has
            of other parts, made alike, are kept.
    """

    width: int = 256
    rows: int = 8
    population: int = 64
    rounds: int = 7
    models: str = ""


def steps(apply: Callable[..., Any], params: Any, x: jax.Array, population: int) -> tuple[Callable[[], Any], int]:
    """A step of `ES`, and how many dense fallbacks it told of."""
    es = eggroll.ES(population=population, sigma=0.01, optimizer=optax.sgd(0.1), fallback="allow")
    state = es.init(params, jax.random.key(2))

    def fitness(params: Any, x: jax.Array) -> jax.Array:
        return -(apply(params, x) ** 2).mean()

    found = eggroll.explain(fitness, params, x, population=population).fallbacks
    return lambda: es.step(state, fitness, x), len(found)


def row(name: str, case: Case, options: Options) -> dict[str, Any]:
    """Times of one architecture over those of its plain layer."""
    params = case.init(jax.random.key(0), options.width)
    x = jax.random.normal(jax.random.key(1), (options.rows, options.width))
    own, fallbacks = steps(case.apply, params, x, options.population)
    plain, _ = steps(case.plain, params, x, options.population)
    forward, plain_forward = jax.jit(case.apply), jax.jit(case.plain)
    times = interleave(
        {
            "own": own,
            "plain": plain,
            "forward": lambda: forward(params, x),
            "plain forward": lambda: plain_forward(params, x),
        },
        rounds=options.rounds,
        most_seconds=60,
    )
    ratio, alone = times["own"].ratio(times["plain"]), times["forward"].ratio(times["plain forward"])
    return {"model": name, "ratio": str(ratio), "forward": str(alone), "dense fallbacks": fallbacks}


def earlier(options: Options) -> dict[str, dict[str, Any]]:
    """Rows by model of a result of other parts, made with the same settings."""
    if not options.models or options.out is None or not options.out.exists():
        return {}
    kept = json.loads(options.out.read_text())
    same = all(kept["settings"][name] == getattr(options, name) for name in ("width", "rows", "population", "rounds"))
    return {r["model"]: r for r in kept["rows"]} if same else {}


def main(args: list[str] | None = None) -> None:
    """Measures every architecture and reports."""
    options = tyro.cli(Options, args=args)
    if options.quick:
        options = Options(True, options.out, width=16, rows=4, population=8, rounds=3)
    warnings.simplefilter("ignore")
    found = earlier(options)
    for name, case in ZOO.items():
        if re.search(options.models, name):
            found[name] = row(name, case, options)
            print(json.dumps(found[name]), flush=True)
    rows = [found[name] for name in ZOO if name in found]
    notes = ["ratio: step over the step of the plain layer, median and quartiles; forward: of one forward pass."]
    summary = {r["model"]: r["ratio"] for r in rows}
    Report("zoo", options, rows, notes, summary).finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
