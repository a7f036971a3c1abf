"""What does a training step of a whole model cost, in units of pure inference of the same rows?

Networks: the digits MLP 64-256-256-10 and a CNN, with 128 images that all members share; a causal transformer of 12
scanned layers, 256 wide, with two shared texts of 64 tokens; the same transformer writing 64 tokens with a cache, each
member from a prompt of its own.

The unit is inference as users write it: `jax.jit(jax.vmap(...))` over the members with the unperturbed weights, every
member's copy of the rows being an argument of its own. It returns logits or tokens; a second one returns fitness. Where
the memory allowed (`--memory`) does not hold it, members are split over as few such calls as fit; `parts` says how
many. `step` is `es.step`: noise, evaluation of the fitness, update. `forward` is `es.ask` and `members.apply` of what
the unit computes; `forward percent` is its throughput in per cent of the unit's: for decoding, tokens per second.

`limit` is beside them what no such evaluation can beat: inference to fitness in the step's own chunks, with noise on
nothing but the bias or scale nearest to the inputs, so that members share what they share in a step and nothing more.

`--chunks 8 16 32` asks another question: does `chunk="auto"` choose well, and what does choosing cost? See
`bench.chunks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
import tyro

import eggroll
from bench.tools.inference import limit, plain_inference
from bench.tools.networks import NETWORKS, Network
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import Timing, interleave

SIGMA, LEARNING_RATE = 0.01, 1e-3
QUICK_SECONDS = 2.0

# What two processor cores do in minutes; `--populations` asks for others.
POPULATIONS = {
    "digits": (64, 256, 1024, 4096, 16384),
    "cnn": (64, 256, 1024),
    "transformer": (64, 256),
    "decode": (64, 256),
}
QUICK: dict[str, tuple[int, dict[str, int]]] = {  # population, and arguments of the network
    "digits": (256, {}),
    "cnn": (16, {"rows": 16}),
    "transformer": (8, {"rows": 1, "depth": 2, "width": 32, "tokens": 16}),
    "decode": (8, {"depth": 2, "width": 32, "tokens": 4}),
}


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.model.

    Attributes:
        networks: `digits`, `cnn`, `transformer`, `decode`; none: all, or two of them under `--quick`.
        populations: for all networks; none: each network's own.
        rows: rows of input (digits, cnn: 128; transformer: 2), for `decode` different prompts (256).
        dtype: of parameters and inputs.
        rank: columns of each noise factor.
        distribution: of the noise.
        noise: on the weights, or on layers' outputs.
        chunk: members at once, or `auto`.
        rounds: turns of each candidate.
        seconds: of one population; then three turns are enough.
        memory: GB that a call of pure inference may make.
        chunks: compare these fixed chunks with `auto` instead.
        first_calls: with `chunks`: fresh processes that make a first call, of each kind.
    """

    networks: tuple[Literal["digits", "cnn", "transformer", "decode"], ...] = ()
    populations: tuple[int, ...] = ()
    rows: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    rank: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"
    noise: Literal["weights", "activations"] = "weights"
    chunk: int | Literal["auto"] = "auto"
    rounds: int = 7
    seconds: float = 30.0
    memory: float = 6.0
    chunks: tuple[int, ...] = ()
    first_calls: int = 3


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.chunks:
        from bench.chunks import chunk_report  # imports this file

        report = chunk_report(options)
    else:
        rows = [measure(network(options, name), population, options) for name, population in points(options)]
        report = Report("model", options, rows, notes=NOTES, summary=summary(rows))
    report.finish(quick=options.quick, out=options.out)


def points(options: Options) -> Iterator[tuple[str, int]]:
    """(network, population) of every row."""
    for name in options.networks or (("digits", "decode") if options.quick else tuple(POPULATIONS)):
        for population in options.populations or ((QUICK[name][0],) if options.quick else POPULATIONS[name]):
            yield name, population


def network(options: Options, name: str) -> Network:
    """A network in the size that the options ask for."""
    sizes = dict(QUICK[name][1]) if options.quick else {}
    if options.rows is not None:
        sizes["rows"] = options.rows
    return NETWORKS[name](dtype=options.dtype, **sizes)


class Trained:
    """A network and its strategy: what is timed, as calls without arguments."""

    def __init__(self, network: Network, population: int, options: Options, chunk: int | str) -> None:
        self.network, self.population = network, population
        self.es = eggroll.ES(
            population=population,
            sigma=SIGMA,
            rank=options.rank,
            optimizer=optax.sgd(LEARNING_RATE),
            distribution=options.distribution,
            noise=options.noise,
            chunk=chunk,
        )
        # Two states: a step may give its memory to the next one.
        self.state, self.start = (self.es.init(network.params, jax.random.key(3)) for _ in range(2))
        self.args, self.inputs = (network.rows(population, targets=t) for t in (True, False))

    def step(self) -> dict[str, Any]:
        """One generation; returns its metrics."""
        in_axes = self.network.in_axes
        self.state, metrics = self.es.step(self.state, self.network.fitness, *self.args, in_axes=in_axes)
        return {**metrics, "params": self.state.params}  # all that is to be waited for

    def forward(self) -> Any:
        """Outputs of all members."""
        return self.es.ask(self.start).apply(self.network.fun, *self.inputs, in_axes=self.network.in_axes)


def measure(network: Network, population: int, options: Options) -> dict[str, Any]:
    """One row of the table."""
    trained = Trained(network, population, options, options.chunk)
    rows = network.copies(population)
    unit = plain_inference(network.fun, network.params, rows[: len(network.inputs)], options.memory * 1e9)
    scored = plain_inference(network.fitness, network.params, rows, options.memory * 1e9)
    chunk = int(trained.step()["chunk"])
    timings = interleave(
        {
            "inference": unit.call,
            "scored": scored.call,
            "limit": limit(network, population, chunk),
            "forward": trained.forward,
            "step": trained.step,
        },
        rounds=3 if options.quick else options.rounds,
        most_seconds=QUICK_SECONDS if options.quick else options.seconds,
    )
    return row(network, population, timings) | {"chunk": chunk, "parts": max(unit.parts, scored.parts)}


def row(network: Network, population: int, timings: dict[str, Timing]) -> dict[str, Any]:
    """The figures of one network and population."""
    names = ("step", "forward", "inference", "scored", "limit")
    step, forward, unit, scored, least = (timings[name] for name in names)
    ratio = step.ratio(unit)
    return {
        "network": network.name,
        "population": population,
        "inference_seconds": unit.median,
        "step_over_inference": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "step_over_scored_inference": step.ratio(scored).median,
        "limit_over_inference": least.ratio(unit).median,
        "forward_over_inference": forward.ratio(unit).median,
        "forward_percent": 100 * unit.ratio(forward).median,
        "members_per_second": population / step.median,
        "rounds": len(step.seconds),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each network the step's ratio at every population, and its limit's; of decoding its share of throughput."""
    ratios = ("step_over_inference", "limit_over_inference")
    figures = {f"{r['network']}_{r['population']}_{ratio}": r[ratio] for r in rows for ratio in ratios}
    decoding = [r for r in rows if r["network"] == "decode"]
    return figures | {f"decode_{r['population']}_percent_of_tokens": r["forward_percent"] for r in decoding}


NOTES = [
    "inference: one vmap over the members, unperturbed shared weights, every member's rows an argument of its own; "
    "parts: calls it is split over to fit the memory allowed.",
    "scored inference returns fitness. forward: es.ask and members.apply of what inference computes; forward percent: "
    "its throughput in per cent of inference (decode: tokens per second).",
    "limit: inference to fitness in the step's chunks, with noise on one bias or scale alone, in units of inference.",
    "Ratios: medians over rounds; low and high are the quartiles of step over inference.",
]

if __name__ == "__main__":
    main()
