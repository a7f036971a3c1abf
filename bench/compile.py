"""How long does a training step take to trace, lower and compile, in units of the plain forward pass?

Compared are `es.step` (wrapped in `jax.jit`, noise, evaluation and update included), the plain forward pass
(`jax.jit` of the fitness of the unperturbed parameters on the same rows) and backpropagation (`jax.jit` of
`jax.value_and_grad` of it), for a causal transformer with a scan over its layers, the same with its layers written out
one by one, and an MLP written out, too, against depth, width and population. There are two limits, the plainest
evolution that can be written: members with noise given as arguments under one `vmap`, fitness times noise added to the
parameters, and nothing else: no random numbers, pairs, chunks, shaping, optimizer or metrics. Once the noise is dense;
once it is factors, with a thin product and a correction beside every product, and each update one product of factors.

Each is traced, lowered and compiled from nothing: a new strategy, `jax.clear_caches()`, and no compilation cache on
disk; all take turns, after one round that is not counted. Ratios are medians over rounds.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro

import eggroll
from bench.tools.compile_limits import LEARNING_RATE, SIGMA, Built, plainest, plainest_low_rank
from bench.tools.networks import Network, deep_mlp, transformer
from bench.tools.options import Common
from bench.tools.report import Report
from eggroll.strategy.evaluate.compiled import forget

PHASES = ("trace", "lower", "compile")
RATIOS = (
    "compile_ratio",
    "compile_ratio_limit",
    "compile_ratio_limit_low_rank",
    "compile_ratio_backprop",
    "compile_over_backprop",
    "total_ratio",
)
FROM_DEPTH, TO_DEPTH = 6, 24  # between which growth is reported


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.compile.

    Attributes:
        depths: layers of the scanned transformer.
        mlp_depths: hidden layers of the MLP that is written out.
        written_depths: layers of the transformer that is written out.
        widths: of the transformer at `depth`.
        populations: for the transformer at `depth`.
        depth: where width and population vary.
        width: where depth and population vary.
        population: where depth and width vary.
        rounds: turns of each candidate, one more than is counted.
        chunk: members at once, or `auto`.
        dtype: of parameters and inputs.
    """

    depths: tuple[int, ...] = (1, 6, 12, 24)
    mlp_depths: tuple[int, ...] = (1, 6, 12, 24)
    written_depths: tuple[int, ...] = (12,)
    widths: tuple[int, ...] = (64, 512)
    populations: tuple[int, ...] = (64, 4096)
    depth: int = 12
    width: int = 256
    population: int = 256
    rounds: int = 4
    chunk: int | Literal["auto"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    network: Literal["transformer", "written", "mlp"]
    depth: int
    width: int
    population: int


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    with no_compilation_cache():
        rows = [measure(case, options) for case in cases(options)]
    report = Report("compile", options, rows, notes=NOTES, summary=summary(rows, options))
    report.finish(quick=options.quick, out=options.out)


def cases(options: Options) -> list[Case]:
    """Every case once, in order."""
    depth, width, population = options.depth, options.width, options.population
    if options.quick:
        return [Case("transformer", 1, 32, 16), Case("mlp", 1, 32, 16)]
    found = [Case("transformer", d, width, population) for d in options.depths]
    found += [Case("transformer", depth, w, population) for w in options.widths]
    found += [Case("transformer", depth, width, p) for p in options.populations]
    found += [Case("written", d, width, population) for d in options.written_depths]
    found += [Case("mlp", d, width, population) for d in options.mlp_depths]
    return list(dict.fromkeys(found))


def measure(case: Case, options: Options) -> dict[str, Any]:
    """One row: seconds of each phase and candidate, and ratios to the plain forward pass."""
    size: dict[str, Any] = {"depth": case.depth, "width": case.width, "dtype": options.dtype}
    net = deep_mlp(**size) if case.network == "mlp" else transformer(**size, written=case.network == "written")
    candidates: dict[str, Callable[[], Built]] = {
        "forward": lambda: (jax.jit(lambda params, *args: net.fitness(params, *args)), (net.params, *net.rows(1))),
        "step": lambda: step(net, case.population, options),
        "backprop": lambda: (jax.jit(jax.value_and_grad(lambda p, *a: net.fitness(p, *a))), (net.params, *net.rows(1))),
        "limit": lambda: plainest(net),
        "limit_low_rank": lambda: plainest_low_rank(net),
    }
    rounds = 1 if options.quick else options.rounds
    seconds = {name: np.zeros((rounds, len(PHASES))) for name in candidates}
    for i in range(rounds):
        for name, candidate in candidates.items():
            seconds[name][i] = phases(candidate)
    counted = {name: each[min(1, rounds - 1) :] for name, each in seconds.items()}
    return vars(case) | figures(counted)


def step(net: Network, population: int, options: Options) -> Built:
    """The full step of a new strategy, which remembers nothing."""
    es = eggroll.ES(population=population, sigma=SIGMA, optimizer=optax.sgd(LEARNING_RATE), chunk=options.chunk)
    state = es.init(net.params, jax.random.key(3))
    return jax.jit(lambda state, *args: es.step(state, net.fitness, *args)), (state, *net.rows(population))


def phases(candidate: Callable[[], Built]) -> tuple[float, ...]:
    """Seconds to trace, lower and compile it, from nothing."""
    forget()  # of strategies with the same settings
    function, args = candidate()
    jax.block_until_ready(args)
    jax.clear_caches()
    gc.collect()
    times = [time.perf_counter()]
    traced = function.trace(*args)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    return tuple(float(t) for t in np.diff(times))


def figures(seconds: dict[str, np.ndarray]) -> dict[str, float]:
    """Medians of `[rounds, phases]` seconds by candidate, and of the step's ratios to the plain forward pass."""
    found = {
        f"{name}_{phase}": float(np.median(seconds[name][:, i]))
        for name in ("forward", "step")
        for i, phase in enumerate(PHASES)
    }
    step, forward, backprop = (seconds[name] for name in ("step", "forward", "backprop"))

    def over_forward(name: str) -> float:
        return float(np.median(seconds[name][:, 2] / forward[:, 2]))

    return found | {
        "backprop_total": float(np.median(backprop.sum(1))),
        "compile_ratio": over_forward("step"),
        "compile_ratio_limit": over_forward("limit"),
        "compile_ratio_limit_low_rank": over_forward("limit_low_rank"),
        "compile_ratio_backprop": over_forward("backprop"),
        "compile_over_backprop": float(np.median(step[:, 2] / backprop[:, 2])),
        "total_ratio": float(np.median(step.sum(1) / forward.sum(1))),
        "total_over_backprop": float(np.median(step.sum(1) / backprop.sum(1))),
    }


def summary(rows: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    """Ratios of the transformer that varies, and growth with depth of compiling and of all three phases."""
    base = {"width": options.width, "population": options.population}
    found: dict[str, Any] = {}
    for name in ("transformer", "mlp"):
        by_depth = {r["depth"]: r for r in rows if r["network"] == name and base.items() <= r.items()}
        if name == "transformer" and options.depth in by_depth:
            row = by_depth[options.depth]
            found |= {f"{name}_{options.depth}_{k}": row[k] for k in RATIOS}
        if {FROM_DEPTH, TO_DEPTH} <= by_depth.keys():
            for candidate in ("step", "forward"):
                low, high = (sum(by_depth[d][f"{candidate}_{p}"] for p in PHASES) for d in (FROM_DEPTH, TO_DEPTH))
                found[f"{name}_{candidate}_growth_{TO_DEPTH}_over_{FROM_DEPTH}"] = high / low
    return found


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Nothing is read from disk in here, whatever the environment says."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


NOTES = [
    "Seconds are medians; every round starts from a new strategy and cleared caches. compile ratio and total ratio: "
    "step in units of the plain forward pass, for compiling alone and for trace, lower and compile together. Limit: "
    "the same for the plainest evolution, with dense noise given; limit low rank: with factors given; backprop: for "
    "value_and_grad without an optimizer.",
]

if __name__ == "__main__":
    main()
