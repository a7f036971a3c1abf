"""Does a long run stay as it began: memory flat, and the ledger's replay without drift from the live parameters?

A small network is trained for 20,000 generations with metrics, ledger and checkpoints. Every so often the resident
memory, the threads and the open files of the process are noted; at the end the ledger is replayed from the initial
parameters, and every bit of parameters and optimizer state is compared, at the end and at the checkpoints on the way.
"""

from __future__ import annotations

import gc
import os
import pathlib
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

import eggroll
from bench.tools.options import Common
from bench.tools.report import RESULTS, Report
from eggroll.training import Compiled, Result, Saving, fit, named, replay, schedule
from eggroll.training.folder.arrays import save_arrays

WIDTHS = (16, 32, 32, 4)
MB = 1e6
NOTED = ("generation", "resident_mb", "threads", "files", "arrays")
PARTS = 10  # of the second half, for the straight line through it


@dataclass(frozen=True)
class Options(Common):
    """Options of `bench.soak`.

    Attributes:
        generations: of the run.
        population: members.
        every: generations between two checkpoints.
        compared: generations on the way at which the replay is compared, beside the last.
    """

    generations: int = 20_000
    population: int = 64
    every: int = 100
    compared: int = 9


def main(argv: list[str] | None = None) -> None:
    """Runs, replays and reports."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = Options(quick=True, out=options.out, generations=90, population=8, every=20, compared=2)
    report = soak(options)
    report.finish(quick=options.quick, out=options.out)
    if not options.quick:
        draw(report.series, RESULTS / "soak" / "memory.png")


def soak(options: Options) -> Report:
    """The run, its process, and its replay."""
    es, initial = strategy(options), parameters()
    stops = {round(k * options.generations / (options.compared + 1)) for k in range(1, options.compared + 1)}
    noted = max(1, options.generations // (10 if options.quick else 200))  # each collects garbage, which is slow
    # What is watched must not grow by the watching: numbers into an array of known size, states into files.
    notes = np.zeros((options.generations // noted + 1, len(NOTED)))
    notes[:] = np.nan

    def evaluate(state: eggroll.State, carry: Any) -> dict[str, float]:
        generation = int(state.generation)
        if generation % noted == 0 or generation == options.generations:
            notes[-(-generation // noted) - 1] = generation, *process()
        if generation in stops:
            keep(kept, state)
        return {}

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as kept:
        result = fit(
            es,
            es.init(initial, jax.random.key(0)),
            Compiled(fitness, carries=True),
            batch,
            generations=options.generations,
            carry={"mean": jnp.zeros(WIDTHS[0])},
            folder=folder,
            saving=Saving(every=options.every, keep=3, best=2),
            evaluate=evaluate,
            evaluate_every=1,
        )
        keep(kept, result.state)
        rows = compare(initial, pathlib.Path(folder), pathlib.Path(kept))
        sizes = {path.name: path.stat().st_size for path in pathlib.Path(folder).iterdir() if path.is_file()}
    series = [dict(zip(NOTED, note.tolist(), strict=True)) for note in notes if not np.isnan(note[0])]
    return Report("soak", options, rows, NOTES, summary(options, series, rows, sizes, result), series)


def keep(folder: str, state: eggroll.State) -> None:
    """Parameters and optimizer state, as they are now."""
    leaves = jax.tree.leaves((state.params, state.opt_state))
    save_arrays(pathlib.Path(folder) / str(int(state.generation)), {str(i): bits(x) for i, x in enumerate(leaves)})


def strategy(options: Options) -> eggroll.ES:
    """Adam with a falling learning rate and a falling sigma: both schedules are part of what has to come back."""
    rate = schedule("cosine_decay_schedule", init_value=0.01, decay_steps=options.generations, alpha=0.1)
    sigma = schedule("linear_schedule", init_value=0.05, end_value=0.02, transition_steps=options.generations)
    return eggroll.ES(population=options.population, sigma=sigma, optimizer=named("adam", learning_rate=rate))


def parameters() -> dict[str, Any]:
    """A small network; one matrix is kept in bfloat16, with its float32 master copy."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for i, (m, n) in enumerate(pairwise(WIDTHS)):
        dtype = jnp.bfloat16 if i == 1 else jnp.float32
        params[f"layer{i}"] = {
            "kernel": jnp.asarray(rng.standard_normal((m, n)) / np.sqrt(m), dtype),
            "bias": jnp.zeros(n, jnp.float32),
        }
    return params


def fitness(params: Any, carry: Any, x: Any, y: Any) -> Any:
    """Regression on a fixed random network, and a running mean as state of the model's own."""
    hidden = x
    for i in range(len(WIDTHS) - 1):
        layer = params[f"layer{i}"]
        hidden = (hidden.astype(layer["kernel"].dtype) @ layer["kernel"]).astype(jnp.float32) + layer["bias"]
        hidden = jnp.tanh(hidden) if i < len(WIDTHS) - 2 else hidden
    return -jnp.mean((hidden - y) ** 2), {"mean": 0.99 * carry["mean"] + 0.01 * x.mean(0)}


def batch(generation: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `[32, 16]` and targets `[32, 4]`."""
    x = np.random.default_rng(generation).standard_normal((32, WIDTHS[0])).astype(np.float32)
    return x, np.sin(x[:, : WIDTHS[-1]] + x[:, WIDTHS[-1] : 2 * WIDTHS[-1]])


def process() -> tuple[float, ...]:
    """Resident memory in MB, threads, open files, and live JAX arrays."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    threads, files = (len(os.listdir(f"/proc/self/{name}")) for name in ("task", "fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / MB, threads, files, len(jax.live_arrays())


def compare(initial: Any, folder: pathlib.Path, kept: pathlib.Path) -> list[dict[str, Any]]:
    """How many numbers of the replay differ from the live run's, in any bit."""
    rows = []

    def look(state: eggroll.State) -> None:
        path = kept / str(int(state.generation))
        if path.exists():
            leaves = jax.tree.leaves((state.params, state.opt_state))
            with np.load(path, allow_pickle=False) as live:
                differ = sum(int((bits(leaf) != live[str(i)]).sum()) for i, leaf in enumerate(leaves))
                assert len(live.files) == len(leaves)
            numbers = sum(leaf.size for leaf in leaves)
            rows.append({"generation": int(path.name), "numbers": numbers, "bytes_that_differ": differ})

    replay(initial, folder / "ledger.bin", on_generation=look)
    return rows


def bits(leaf: Any) -> np.ndarray:
    """The bytes of an array; a scalar has none to view."""
    return np.asarray(leaf).reshape(-1).view(np.uint8)


def growth(notes: list[dict[str, Any]]) -> tuple[float, float, float]:
    """MB in 10,000 generations: the slope of a straight line by least squares, and its 95 % interval.

    Through the means of ten equal parts: neighbouring notes go together, and the interval would be too narrow.
    """
    parts = np.array_split(np.array([[n["generation"], n["resident_mb"]] for n in notes]), PARTS)
    at, resident = np.array([part.mean(0) for part in parts if len(part)]).T
    fit = stats.linregress(at, resident)
    slope, wide = float(fit.slope), float(stats.t.ppf(0.975, len(at) - 2) * fit.stderr)
    return 1e4 * slope, 1e4 * (slope - wide), 1e4 * (slope + wide)


def summary(
    options: Options, notes: list[dict[str, Any]], rows: list[dict[str, Any]], sizes: dict[str, int], result: Result
) -> dict[str, Any]:
    """Growth over the second half, by a straight line through all notes of it, and what the replay says."""
    late = [note for note in notes if note["generation"] > options.generations / 2]
    slope, least, most = growth(late) if len(late) > 2 else (float("nan"),) * 3
    return {
        "generations": result.generation,
        "generations_per_second": result.generation / result.seconds,
        "resident_mb_at_the_middle": late[0]["resident_mb"],
        "resident_mb_at_the_end": late[-1]["resident_mb"],
        "mb_per_10000_generations_in_the_second_half": slope,
        "with_95_percent_between": [least, most],
        "threads_most": max(note["threads"] for note in late),
        "threads_at_the_middle": late[0]["threads"],
        "files_at_the_middle": late[0]["files"],
        "files_most": max(note["files"] for note in late),
        "arrays_at_the_middle": late[0]["arrays"],
        "arrays_most": max(note["arrays"] for note in late),
        "replays_compared": len(rows),
        "bytes_that_differ": sum(row["bytes_that_differ"] for row in rows),
        "ledger_bytes_per_generation": sizes["ledger.bin"] / result.generation,
    }


def draw(notes: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Memory, threads and open files against generation."""
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    at = [note["generation"] for note in notes]
    above.plot(at, [note["resident_mb"] for note in notes], color="#3465a4", linewidth=1.4)
    above.set_ylim(0)
    above.set_ylabel("resident memory (MB)")
    for name, colour in (("threads", "#2e8b57"), ("files", "#c17d11"), ("arrays", "#555555")):
        below.plot(at, [note[name] for note in notes], color=colour, linewidth=1.2, label=name)
    below.set_ylim(0)
    below.set_xlabel("generation")
    below.legend(frameon=False, fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


NOTES = [
    "A run with metrics, ledger and checkpoints (3 newest, 2 best) in one process; memory is the resident set, after a "
    "garbage collection.",
    "bytes that differ: between parameters and optimizer state of the live run and of the ledger's replay.",
]

if __name__ == "__main__":
    main()
