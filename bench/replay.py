"""What does replaying a generation from a ledger cost, in units of the live generation?

The digits MLP 64-256-256-10 under Adam, with 64 images that all members share, as `eggroll train` has them: `es.step`
and the update that a replay makes from a record take turns in one process. Beside them: the bytes of a record and of a
checkpoint (parameters and optimizer state), how many generations of ledger are as large as a checkpoint, and whether a
replay of a whole run gave its bits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

import eggroll
from bench.tools.networks import NETWORKS, Network
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import Timing, interleave
from eggroll.training.ledger.format import generation_bytes
from eggroll.training.ledger.journal import Journal
from eggroll.training.ledger.reader import Generation, Reader
from eggroll.training.ledger.rebuilding import Replay
from eggroll.training.optimizers import named

SIGMA, LEARNING_RATE = 0.02, 0.015


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.replay.

    Attributes:
        networks: `digits`, `cnn`.
        populations: members in a generation.
        rows: images that all members share.
        rank: columns of each noise factor.
        distribution: of the noise.
        generations: of the run that is replayed as a whole.
        rounds: turns of each candidate.
    """

    networks: tuple[Literal["digits", "cnn"], ...] = ("digits",)
    populations: tuple[int, ...] = (64, 1024, 4096)
    rows: int = 64
    rank: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"
    generations: int = 100
    rounds: int = 15


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    populations = (16,) if options.quick else options.populations
    rows = [measure(NETWORKS[name](rows=options.rows), n, options) for name in options.networks for n in populations]
    report = Report("replay", options, rows, notes=NOTES, summary=summary(rows))
    report.finish(quick=options.quick, out=options.out)


def measure(network: Network, population: int, options: Options) -> dict[str, Any]:
    """One row of the table."""
    es = eggroll.ES(
        population=population,
        sigma=SIGMA,
        rank=options.rank,
        optimizer=named("adam", learning_rate=LEARNING_RATE, b2=0.99),
        distribution=options.distribution,
    )
    generations = 3 if options.quick else options.generations
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.bin"
        last = live(es, network, ledger, generations)
        replay, start = Replay(network.params, ledger), time.perf_counter()
        state = jax.block_until_ready(replay.run())
        seconds = time.perf_counter() - start
        equal = all(map(same_bits, jax.tree.leaves(state.params), jax.tree.leaves(last.params)))
        candidates = {"live": step(es, network, last), "replay": again(replay, ledger)}
        timings = interleave(candidates, rounds=3 if options.quick else options.rounds)
    return row(network.name, population, timings, last) | {
        "whole_replay_seconds": seconds,
        "generations": generations,
        "bit_equal": equal and not replay.inexact,
    }


def live(es: eggroll.ES, network: Network, ledger: Path, generations: int) -> eggroll.State:
    """A run with a ledger."""
    key = jax.random.key(3)
    state = es.init(network.params, key)
    with Journal(ledger, es, network.params, key=key) as journal:
        for _ in range(generations):
            state, metrics = es.step(state, network.fitness, *network.rows(es.population))
            journal.append(metrics)
    return state


def step(es: eggroll.ES, network: Network, state: eggroll.State) -> Callable[[], Any]:
    """A live generation, always the same one: state and metrics are waited for."""
    args = network.rows(es.population)
    return lambda: es.step(state, network.fitness, *args)


def again(replay: Replay, ledger: Path) -> Callable[[], Any]:
    """The update of the last record, compiled already."""
    record = [entry for entry in Reader(ledger) if isinstance(entry, Generation)][-1]
    update, state = replay.update, replay.state
    return lambda: update(state, record)


def same_bits(a: jax.Array, b: jax.Array) -> bool:
    """Whether two arrays hold the same bytes."""
    return jax.device_get(a).tobytes() == jax.device_get(b).tobytes()


def row(name: str, population: int, timings: dict[str, Timing], state: eggroll.State) -> dict[str, Any]:
    """The figures of one network and population."""
    ratio = timings["replay"].ratio(timings["live"])
    checkpoint = sum(x.nbytes for x in jax.tree.leaves((state.params, state.master, state.opt_state)))
    return {
        "network": name,
        "population": population,
        "live_milliseconds": 1e3 * timings["live"].median,
        "replay_milliseconds": 1e3 * timings["replay"].median,
        "replay_over_live": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "record_bytes": generation_bytes(population),
        "checkpoint_bytes": checkpoint,
        "generations_per_checkpoint": checkpoint // generation_bytes(population),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratio of every row, and whether all replays gave the run's bits."""
    ratios = {f"{r['network']}_{r['population']}_replay_over_live": r["replay_over_live"] for r in rows}
    return ratios | {"all_bit_equal": all(r["bit_equal"] for r in rows)}


NOTES = [
    "live: es.step. replay: the noise again, its product with the recorded weights, and the optimizer. Ratio: median "
    "over rounds; low and high are its quartiles.",
    "checkpoint bytes: parameters and optimizer state, without compression. generations per checkpoint: a ledger of so "
    "many is as large. whole replay: all generations, from the file and with compilation.",
]

if __name__ == "__main__":
    main()
