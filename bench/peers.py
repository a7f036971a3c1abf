"""How does a training step compare with the peers', for the same work in one process?

Peers: evosax `Open_ES`, torcheggroll and eggroll-es from the package index, HyperscaleES and shardes from a local
checkout that HYPERSCALEES_PATH or SHARDES_PATH names (shardes also installed). A peer that is not there is a line
that says how to get it. What of a peer is measured, and what is left out and why, says its adapter in
bench/peer_adapters.

Two works, float32: `layer`, a bias-free linear layer 512 wide, population 4096, a row of input per member; `digits`,
the MLP 64-256-256-10 on 128 rows that all members share, population 1024. Measured is a full step (noise, evaluation,
update by gradient descent) against pure inference of the same rows as users write it, one `vmap` over the population,
in the peer's own framework: PyTorch's peers are divided by PyTorch's inference. All take turns in one process, with a
thread a core in both frameworks, but eggroll-es, whose import package has our name: it has a process of its own, and
its inference too. Ratios are medians over rounds.

`peak MB`: peak memory of the whole process, interpreter and libraries included (on an accelerator: of its memory),
after two steps on the digits with that population, each in a fresh process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tyro

from bench.peer_adapters import ADAPTERS, WORKS, Candidate, LeftOut, Missing, Work, adapter
from bench.peer_adapters.memory import Stopped, ask, available_bytes, request_for
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import Timing, interleave


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.peers.

    Attributes:
        works: `layer`, `digits`, or both.
        peers: adapters to run, by the names of their modules; `ours` comes first.
        width: of the layer.
        layer_population: members on the layer.
        population: members on the digits.
        rows: of the digits.
        rank: of the noise.
        rounds: turns that each has.
        memory_populations: members for which peak memory is measured; none with `--memory-populations` alone.
        memory_gb: memory that a peer may take; None: four fifths of what is free.
    """

    works: tuple[str, ...] = WORKS
    peers: tuple[str, ...] = ADAPTERS
    width: int = 512
    layer_population: int = 4096
    population: int = 1024
    rows: int = 128
    rank: int = 1
    rounds: int = 5
    memory_populations: tuple[int, ...] = (1024, 4096, 16384)
    memory_gb: float | None = None

    def reduced(self) -> Options:
        """Small enough to see in seconds that the script works."""
        return replace(self, width=64, layer_population=64, population=32, rows=16, rounds=2, memory_populations=())

    def work(self, name: str) -> Work:
        """The work of that name, with these sizes."""
        population = self.layer_population if name == "layer" else self.population
        return Work(name, population, width=self.width, rows=self.rows, rank=self.rank)

    @property
    def limit(self) -> float:
        """Bytes that a peer may take."""
        if self.memory_gb is not None:
            return self.memory_gb * 1e9
        return 0.8 * (available_bytes() or float("inf"))


class Outcome:
    """What became of one peer at one work.

    Args:
        name: the adapter's.
        work: the work.

    Attributes:
        version: of the peer; None where it is missing.
        notes: why something is not measured.
        step: time of a step, or None.
        inference: time of its framework's inference in the same process, or None.
        peaks: population → peak memory in bytes.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name, self.work, self.module = name, work, adapter(name)
        self.version: str | None = None
        self.notes: list[str] = []
        self.step: Timing | None = None
        self.inference: Timing | None = None
        self.peaks: dict[int, int] = {}
        try:
            self.version = self.module.version()
        except Missing as why:
            self.notes.append(f"not installed: {why}")

    @property
    def own_process(self) -> bool:
        """Whether it cannot share a process with us."""
        return getattr(self.module, "OWN_PROCESS", False)

    def fits(self, work: Work, limit: float) -> bool:
        """Whether the peer is there, and its dense copies of the population would fit; notes it if not."""
        needs = self.module.dense_copies(work) * work.dense_bytes
        if self.version is not None and needs > limit:
            about = f"its dense members need about {needs / 1e9:.1f} GB, {limit / 1e9:.1f} GB allowed"
            self.notes.append(f"population {work.population}: {about}")
        return self.version is not None and needs <= limit

    def prepare(self) -> Candidate | None:
        """Compiles the peer's step and runs it once; a failure is noted and the others go on."""
        try:
            candidate = self.module.prepare(self.work)
            candidate.step()
            self.notes += [candidate.note] if candidate.note else []
            return candidate
        except LeftOut as why:
            self.notes.append(f"left out: {why}")
        except Exception as why:  # whatever a peer does, it is its own line of the report
            if self.name.startswith("ours"):
                raise
            self.notes.append(f"failed: {type(why).__name__}: {str(why).splitlines()[0] if str(why) else ''}")
        return None

    def measure_apart(self, rounds: int, limit: float) -> None:
        """Times the peer in its own process, in turns with its framework's inference."""
        try:
            answer = ask(self.module.command(), request_for(self.work, rounds), limit=limit)
        except Stopped as why:
            self.notes.append(f"failed: {why}")
            return
        self.step = Timing(self.name, tuple(answer["step"]))
        self.inference = Timing("inference", tuple(answer["inference"]))

    def measure_memory(self, population: int, limit: float) -> None:
        """Peak memory of two steps in a fresh process."""
        work = replace(self.work, population=population)
        if not self.fits(work, limit):
            return
        command = [sys.executable, "-m", "bench.peer_adapters.memory", self.name]
        try:
            answer = ask(self.module.command() if self.own_process else command, request_for(work), limit=limit)
            self.peaks[population] = answer["bytes_peak"]
        except Stopped as why:
            self.notes.append(f"population {population}: {why}")

    def row(self, ours: Timing | None, populations: Sequence[int]) -> dict[str, Any]:
        """The line of the report."""
        ratio = self.step.ratio(self.inference) if self.step and self.inference else None
        together = self.step is not None and ours is not None and not self.own_process
        return {
            "work": self.work.name,
            "peer": self.module.NAME,
            "version": self.version,
            "step_ms": 1000 * self.step.median if self.step else None,
            "inference_ms": 1000 * self.inference.median if self.inference else None,
            "framework": self.module.UNIT,
            "step_per_inference": ratio.median if ratio else None,
            "low": ratio.low if ratio else None,
            "high": ratio.high if ratio else None,
            "times_ours": self.step.ratio(ours).median if together and self.step and ours else None,
            **{f"peak_MB_{n}": self.peaks[n] / 1e6 if n in self.peaks else None for n in populations},
            "note": "; ".join(dict.fromkeys(self.notes)) or None,
        }


def measure_together(outcomes: Sequence[Outcome], options: Options) -> None:
    """Times all that share this process, in turns."""
    ready: dict[str, Candidate] = {}
    for outcome in outcomes:
        if not outcome.own_process and outcome.fits(outcome.work, options.limit) and (found := outcome.prepare()):
            ready[outcome.name] = found
    units = {adapter(name).UNIT: candidate.inference for name, candidate in ready.items()}
    calls = {f"{unit} inference": call for unit, call in units.items()}
    timings = interleave(calls | {name: one.step for name, one in ready.items()}, rounds=options.rounds)
    for outcome in outcomes:
        if outcome.name in ready:
            outcome.step = timings[outcome.name]
            outcome.inference = timings[f"{outcome.module.UNIT} inference"]


def measure(name: str, options: Options) -> list[dict[str, Any]]:
    """All lines of one work."""
    outcomes = [Outcome(peer, options.work(name)) for peer in options.peers]
    measure_together(outcomes, options)
    for outcome in outcomes:
        if outcome.own_process and outcome.fits(outcome.work, options.limit):
            outcome.measure_apart(options.rounds, options.limit)
    for population in options.memory_populations if name == "digits" else ():
        for outcome in outcomes:
            outcome.measure_memory(population, options.limit)
    ours = next((outcome.step for outcome in outcomes if outcome.name == "ours"), None)
    return [outcome.row(ours, options.memory_populations) for outcome in outcomes]


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = options.reduced() if options.quick else options
    # PyTorch's idle threads would spin and take the cores from whoever has its turn, PyTorch included: on two busy
    # cores a small inference took 80 ms instead of 2.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    report = Report("peers", options)
    for name in options.works:
        report.rows += measure(name, options)
    for row in report.rows:
        if row["step_per_inference"] is not None:
            report.summary[f"{row['work']}, {row['peer']}: step / inference"] = row["step_per_inference"]
    report.notes = [
        "step per inference: median over rounds with quartiles; same rows, same framework, same process.",
        "times ours: the peer's step in units of ours (rademacher noise), taking turns in one process.",
    ]
    report.finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
