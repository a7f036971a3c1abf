"""What crosses a mesh in a generation, and does the work divide?

One generation of the digits MLP 64-256-256-10, 128 rows shared by all members, on 1, 2, 4 and 8 simulated devices in
both layouts of the update: strong scaling (the same population on more devices) and weak (so many members a device).

The bytes are read from the compiled step: every collective operation that crosses the axis `"population"`, with the
size of what is gathered or summed on one device. Beside them stands what theory asks: 4 bytes a member for fitness, and
of the update the sums (`4·m·n` bytes of every matrix, by members) or the new weights (`m·n` of their dtype, by
weights).

Simulated devices share this machine's cores: the time ratios say what splitting costs, not what more chips would gain.
Every point is a fresh process.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

import eggroll
from bench.tools.collectives import Collective, collectives, crossing
from bench.tools.fresh import run_fresh
from bench.tools.networks import NETWORKS
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import interleave
from bench.tools.update_costs import RATES, update_cost
from eggroll.strategy.generation import Generation

SIGMA, LEARNING_RATE = 0.02, 1e-2
UPDATES = "members", "weights"
ROUNDS = 7


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.scaling.

    Attributes:
        devices: simulated devices, the first the unit of the time ratios.
        population: members in all, for strong scaling.
        members: on each device, for weak scaling.
        network: `digits`, `cnn` or `transformer`.
        rows: rows of input (digits: 128).
        dtype: of the parameters.
        point: measure one point in this process, of this layout, with `devices[0]` and `population`, and print it.
    """

    devices: tuple[int, ...] = (1, 2, 4, 8)
    population: int = 2048
    members: int = 256
    network: Literal["digits", "cnn", "transformer"] = "digits"
    rows: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    point: Literal["members", "weights"] | None = None


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.point is not None:
        print(json.dumps(measure(options, options.point)), flush=True)
        return
    devices = options.devices[:2] if options.quick else options.devices
    population, members = (64, 32) if options.quick else (options.population, options.members)
    rows, measured = [], cache(partial(fresh_point, options))  # weak and strong scaling can meet in a point
    for update in UPDATES:
        sizes = {"strong": lambda n: population, "weak": lambda n: members * n}
        for scaling, size in sizes.items():
            points = [measured(update, n, size(n)) for n in devices]
            rows += [row(scaling, update, point, points[0]) for point in points]
    Report("scaling", options, rows, notes=NOTES, summary=summary(rows)).finish(quick=options.quick, out=options.out)


def fresh_point(options: Options, update: str, devices: int, population: int) -> dict[str, Any]:
    """One point in a process of its own with so many simulated devices."""
    given = {"point": update, "devices": devices, "population": population, "network": options.network}
    given |= {"dtype": options.dtype, "rows": 8 if options.quick else options.rows}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    arguments = (t for k, v in given.items() if v is not None for t in (f"--{k}", str(v)))
    return run_fresh("bench.scaling", *arguments, environment={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"})


def measure(options: Options, update: str) -> dict[str, Any]:
    """The bytes of one compiled step, and its time."""
    devices, population = options.devices[0], options.population
    rows = {} if options.rows is None else {"rows": options.rows}
    net = NETWORKS[options.network](dtype=options.dtype, **rows)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("population",))
    optimizer = optax.adam(LEARNING_RATE)
    es = eggroll.ES(population=population, sigma=SIGMA, optimizer=optimizer, mesh=mesh, update=update)
    state, args = es.init(net.params, jax.random.key(3)), net.rows(population)
    step = jax.jit(lambda state, *args: es.step(state, net.fitness, *args))
    compiled = step.lower(state, *args).compile()
    timing = interleave({"step": lambda: compiled(state, *args)}, rounds=ROUNDS)["step"]
    return (
        {"devices": devices, "population": population, "seconds": timing.median}
        | theory(es, state)
        | parts(crossing(collectives(compiled), mesh, "population"), population)
    )


def parts(found: list[Collective], population: int) -> dict[str, int]:
    """Bytes of the fitness and of all else that crosses, and in how many operations."""
    fitness = [c for c in found if (c.kind, c.bytes) == ("all-gather", 4 * population) and "cond" not in c.name]
    total = sum(c.bytes * c.times for c in found)
    gathered = sum(c.bytes * c.times for c in fitness)
    return {"operations": len(found), "fitness_bytes": gathered, "update_bytes": total - gathered}


def theory(es: eggroll.ES, state: eggroll.State) -> dict[str, float]:
    """What has to cross where there is more than one device."""
    plan = es.ask(state).plan  # of the step that was compiled: plans are remembered by the parameters' shapes
    placement = Generation(es.settings, plan, es._key(state), es._sigma(state)).placement
    assert placement is not None
    apart = placement.mesh.size > 1
    cost = update_cost(placement, plan, es.settings, RATES["cpu"])
    return {
        "fitness_theory": 4 * es.population * apart,
        "update_theory": cost.crossing * apart,
    }


def row(scaling: str, update: str, point: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """A row of the table; the time in units of the first point's, per member a device for weak scaling alike."""
    return {
        "scaling": scaling,
        "update": update,
        "devices": point["devices"],
        "population": point["population"],
        "fitness_bytes": point["fitness_bytes"],
        "fitness_theory": point["fitness_theory"],
        "update_bytes": point["update_bytes"],
        "update_theory": point["update_theory"],
        "operations": point["operations"],
        "milliseconds": 1e3 * point["seconds"],
        "time_ratio": point["seconds"] / first["seconds"],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the bytes are from theory, and the time ratios at the most devices."""
    apart = [r for r in rows if r["devices"] > 1]
    most = max(r["devices"] for r in rows)
    return {
        "fitness_bytes_beyond_theory": max((r["fitness_bytes"] - r["fitness_theory"] for r in apart), default=0),
        "update_bytes_beyond_theory": max((r["update_bytes"] - r["update_theory"] for r in apart), default=0),
        **{f"{r['scaling']}_{r['update']}_time_ratio_{most}": r["time_ratio"] for r in rows if r["devices"] == most},
    }


NOTES = [
    "Bytes of what is gathered or summed, on one device, of every collective that crosses the population, read from "
    "the compiled step; update bytes beyond theory are the norms in the metrics, 4 bytes for each parameter and norm.",
    "time ratio: in units of the first number of devices. Simulated devices share the machine's cores, so that strong "
    "scaling can at best stay at 1 and weak scaling grows with the members: what splitting costs, no claim of a "
    "speed-up.",
]

if __name__ == "__main__":
    main()
