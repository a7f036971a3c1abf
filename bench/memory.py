"""How much memory does training take, and does it grow with the population?

Peak memory of a process that makes three generations of the digits MLP 64-256-256-10, 128 rows shared by all members,
at populations from 64 to 16384; beside it pure inference of the same rows in one `jax.vmap`, and a process that only
imports JAX, Flax and eggroll and makes one plain forward pass: what is there before any population.

Every point is a fresh process. On a CPU it reports the process's peak of resident memory, compiler included (from
`/proc` where there is one, since `ru_maxrss` of a child starts at what its parent had reached), on an accelerator the
device's `peak_bytes_in_use`.
"""

from __future__ import annotations

import json
import pathlib
import re
import resource
import sys
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
import tyro

import eggroll
from bench.tools.fresh import run_fresh
from bench.tools.inference import plain_inference
from bench.tools.networks import NETWORKS, Network
from bench.tools.options import Common
from bench.tools.report import Report

SIGMA, LEARNING_RATE, GENERATIONS = 0.01, 1e-3, 3
QUICK_POPULATIONS, REFERENCE = (64, 1024), 1024


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.memory.

    Attributes:
        populations: members, one row of the table each.
        network: `digits`, `cnn`, `transformer` or `decode`.
        rows: rows of input (digits: 128).
        dtype: of parameters and inputs.
        chunk: members at once, or `auto`.
        inference_up_to: pure inference is left out for larger populations; at 16384 it takes several GB.
        point: measure one point in this process and print it: `base`, `step` or `inference`.
    """

    populations: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    network: Literal["digits", "cnn", "transformer", "decode"] = "digits"
    rows: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chunk: int | Literal["auto"] = "auto"
    inference_up_to: int = 16384
    point: Literal["base", "step", "inference"] | None = None


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.point is not None:
        print(json.dumps(POINTS[options.point](options) | peak()), flush=True)
        return
    populations = QUICK_POPULATIONS if options.quick else options.populations
    base = fresh_point(options, "base", populations[0])["peak_bytes"]
    rows = [table_row(options, population, base) for population in populations]
    Report("memory", options, rows, notes=NOTES, summary=summary(rows, base)).finish(
        quick=options.quick, out=options.out
    )


def table_row(options: Options, population: int, base: int) -> dict[str, Any]:
    """Peak memory at one population, in MB."""
    step = fresh_point(options, "step", population)
    inference = None
    if population <= options.inference_up_to:
        inference = fresh_point(options, "inference", population)["peak_bytes"] / 1e6
    return {
        "population": population,
        "chunk": step["chunk"],
        "step_mb": step["peak_bytes"] / 1e6,
        "step_above_base_mb": (step["peak_bytes"] - base) / 1e6,
        "inference_mb": inference,
        "measured": step["measured"],
    }


def summary(rows: list[dict[str, Any]], base: int) -> dict[str, Any]:
    """The largest population's peak, in MB and in units of the peak at 1024, or at the first where that is absent."""
    last = rows[-1]
    reference = next((r for r in rows if r["population"] == REFERENCE and r is not last), rows[0])
    ratio = last["step_mb"] / reference["step_mb"]
    return {
        "base_mb": base / 1e6,
        f"step_mb_at_{last['population']}": last["step_mb"],
        f"ratio_{last['population']}_to_{reference['population']}": ratio,
    }


def fresh_point(options: Options, point: str, population: int) -> dict[str, Any]:
    """One point in a process of its own."""
    given = {
        "point": point,
        "populations": population,
        "network": options.network,
        "dtype": options.dtype,
        "chunk": options.chunk,
        "rows": options.rows,
    }
    return run_fresh("bench.memory", *(t for k, v in given.items() if v is not None for t in (f"--{k}", str(v))))


def base_point(options: Options) -> dict[str, Any]:
    """Imports and one plain forward pass."""
    net = network(options)
    inputs = net.copies(1, targets=False)
    jax.block_until_ready(jax.jit(net.fun)(net.params, *(x[0] for x in inputs)))
    return {}


def step_point(options: Options) -> dict[str, Any]:
    """A few generations."""
    net, population = network(options), options.populations[0]
    optimizer = optax.sgd(LEARNING_RATE)
    es = eggroll.ES(population=population, sigma=SIGMA, optimizer=optimizer, chunk=options.chunk)
    state, args = es.init(net.params, jax.random.key(3)), net.rows(population)
    for _ in range(GENERATIONS):
        state, metrics = es.step(state, net.fitness, *args, in_axes=net.in_axes)
        jax.block_until_ready(state)
    return {"chunk": int(metrics["chunk"])}


def inference_point(options: Options) -> dict[str, Any]:
    """One call of pure inference, all members in one vmap."""
    net, population = network(options), options.populations[0]
    inputs = net.copies(population, targets=False)
    jax.block_until_ready(plain_inference(net.fun, net.params, inputs, float("inf")).call())
    return {}


def network(options: Options) -> Network:
    """The network that the options name."""
    rows = {} if options.rows is None else {"rows": options.rows}
    return NETWORKS[options.network](dtype=options.dtype, **rows)


def peak() -> dict[str, Any]:
    """The peak so far: `peak_bytes`, and of what, `measured`."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_bytes": stats["peak_bytes_in_use"], "measured": "device"}
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return {"peak_bytes": 1024 * int(found.group(1)), "measured": "process"}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "measured": "process"}


POINTS = {"base": base_point, "step": step_point, "inference": inference_point}
NOTES = [
    "Peak of a fresh process for each point, in MB; base: imports and one plain forward pass. inference: one vmap over "
    "the members, every member's rows an argument of its own."
]

if __name__ == "__main__":
    main()
