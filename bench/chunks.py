"""Does `chunk="auto"` choose well, and what does choosing cost? The answer of `bench.model --chunks 8 16 32 64`.

Times a step with `auto` and with each fixed chunk in turns, in units of pure inference. `auto over best fixed` is the
time of `auto` in units of the fastest fixed chunk's.

A first call also traces and compiles. So `choosing costs steps` is the first call with `auto` minus the first call with
the chunk that it chose, in units of a later step; each first call is made in a fresh process, where nothing is
remembered, and both kinds take turns. Compiling takes about as long in both, but for a spread of its own: where a step
is much shorter than that, the difference says little; `spread` is half the distance of its quartiles.
"""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import numpy as np
import tyro

from bench.model import QUICK_SECONDS, Options, Trained, network, points
from bench.tools.fresh import run_fresh
from bench.tools.inference import plain_inference
from bench.tools.report import Report
from bench.tools.timing import interleave

LATER_STEPS = 3


def main(argv: list[str] | None = None) -> None:
    """Makes one first call in this process, of the one network, population and chunk that the options name."""
    print(json.dumps(first_call(tyro.cli(Options, args=argv, description=__doc__))), flush=True)


def chunk_report(options: Options) -> Report:
    """The comparison for every network and population."""
    # First calls come first: where a device serves one process, this one must not have it yet.
    costs = {point: choosing_cost(options, *point) for point in points(options)}
    rows = [compare(options, name, population) | costs[name, population] for name, population in costs]
    figures = {f"{r['network']}_{r['population']}_auto_over_best_fixed": r["auto_over_best_fixed"] for r in rows}
    figures |= {f"{r['network']}_{r['population']}_choosing_costs_steps": r["choosing_costs_steps"] for r in rows}
    return Report("chunks", options, rows, notes=NOTES, summary=figures)


def compare(options: Options, name: str, population: int) -> dict[str, Any]:
    """Steps with `auto` and with each fixed chunk, in units of inference."""
    net = network(options, name)
    unit = plain_inference(net.fun, net.params, net.copies(population, targets=False), options.memory * 1e9)
    sizes = [chunk for chunk in options.chunks if chunk <= population]
    trained = {chunk: Trained(net, population, options, chunk) for chunk in ("auto", *sizes)}
    timings = interleave(
        {"inference": unit.call, **{str(chunk): one.step for chunk, one in trained.items()}},
        rounds=3 if options.quick else options.rounds,
        most_seconds=QUICK_SECONDS if options.quick else options.seconds,
    )
    best = min(sizes, key=lambda chunk: timings[str(chunk)].median)
    ratios = {f"chunk_{c}": timings[str(c)].ratio(timings["inference"]).median for c in sizes}
    return {
        "network": name,
        "population": population,
        "auto_chunk": int(trained["auto"].step()["chunk"]),
        "auto": timings["auto"].ratio(timings["inference"]).median,
        **{f"chunk_{c}": ratios.get(f"chunk_{c}") for c in options.chunks},
        "best_fixed": best,
        "auto_over_best_fixed": timings["auto"].ratio(timings[str(best)]).median,
    }


def choosing_cost(options: Options, name: str, population: int) -> dict[str, float]:
    """First call with `auto` minus first call with the chunk that it chose, in later steps."""
    extra, step = [], []
    for _ in range(1 if options.quick else options.first_calls):
        auto = fresh_first_call(options, name, population, "auto")
        fixed = fresh_first_call(options, name, population, auto["chunk"])
        step.append(auto["later"])
        extra.append(auto["first"] - fixed["first"])
    low, median, high = np.quantile(extra, (0.25, 0.5, 0.75)) / np.median(step)
    return {"choosing_costs_steps": float(median), "spread": float(high - low) / 2}


def fresh_first_call(options: Options, name: str, population: int, chunk: int | str) -> dict[str, float]:
    """`first_call` in a process of its own."""
    given = {
        "networks": name,
        "populations": population,
        "chunk": chunk,
        "dtype": options.dtype,
        "rank": options.rank,
        "distribution": options.distribution,
        "rows": options.rows,
    }
    arguments = [text for key, value in given.items() if value is not None for text in (f"--{key}", str(value))]
    return run_fresh("bench.chunks", *arguments, *(["--quick"] if options.quick else []))


def first_call(options: Options) -> dict[str, float]:
    """Seconds of the first step and of a later one, and the members evaluated at once."""
    name, population = next(points(options))
    trained = Trained(network(options, name), population, options, options.chunk)
    jax.block_until_ready((trained.state, trained.args))
    seconds = []
    for _ in range(1 + LATER_STEPS):
        start = time.perf_counter()
        metrics = jax.block_until_ready(trained.step())
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "later": float(np.median(seconds[1:])), "chunk": int(metrics["chunk"])}


NOTES = [
    "auto and chunk columns: a step in units of pure inference of the same rows. auto over best fixed: in units of the "
    "fastest fixed chunk's step.",
    "choosing costs steps: first call with auto minus first call with the chunk it chose, fresh processes in turns, in "
    "units of a later step; both compile, and spread (half the quartiles' distance) is mostly compilation's.",
]

if __name__ == "__main__":
    main()
