"""How fast are the kernels, against plain inference and the rate of matrix products?

Of a layer with one row of input per member (arXiv 2511.16652, Fig. 7), every implementation of `lowrank_dot` and
`rank_update` that this platform has, by itself, in turns with

- inference: `x @ W`, compiled, all rows at once: the unit of `per cent of inference`;
- products of numbers that exist, summed as `rank_update` sums (`float32` from `bfloat16`, or all of `float32`): one of
  the update's shape `[K, Ur]·[Ur, N]`, one large and square: the units of `per cent of product` and `of square`.

Noise is on the fly (`Seeded` factors: keys alone) or given (factors are arrays). A full step is forward pass, fitness,
z-scores, `rank_update` and SGD on a float32 weight. Beside each time stand the operations and bytes that it takes at
least, with their formula (`bench.tools.needs`): N members, U = N/2 units that share factors, K inputs, M outputs, rank
r.

No step reaches inference's throughput: its update is a product of 2UrKM FLOP beside the forward's 2NKM, so that with
pairs and rank 1 the limit is 1/1.5 = 66.7 %. `limit per cent` is that limit by count; `inference and update without
noise` measures it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import tyro

from bench.tools.kernel_candidates import (
    BOTH,
    FORWARD,
    INFERENCE,
    PRODUCT,
    SQUARE,
    STEP,
    UPDATE,
    Candidate,
    kernels,
    products,
)
from bench.tools.kernel_shapes import PAPER, Shape
from bench.tools.limits import VECTOR
from bench.tools.needs import LEGEND
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import Timing, interleave
from eggroll.kernels import implementations


@dataclass(frozen=True)
class Options(Common):
    """How fast are the kernels, against plain inference and the rate of matrix products?

    Attributes:
        width: inputs and outputs of the layer.
        population: members, in pairs, each with one row of input.
        dtype: of weight, inputs and noise.
        rank: columns of each factor.
        distribution: of the noise.
        implementations: names; none: all that this platform has.
        plugins: modules to import, which register further implementations.
        square: side of the square product.
        rounds: turns of each candidate.
    """

    width: int = PAPER.depth
    population: int = PAPER.members
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    rank: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"
    implementations: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    square: int = 8192
    rounds: int = 9


def working(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Those that run, and a note on each of the others."""
    found, notes = [], []
    for candidate in candidates:
        try:
            jax.block_until_ready(candidate.call())
        except Exception as error:  # of any kind: the others are measured
            notes.append(f"{candidate.name}: {type(error).__name__}: {str(error)[:300]}")
        else:
            found.append(candidate)
    return found, notes


def row(
    candidate: Candidate, timings: Mapping[str, Timing], rates: Mapping[str, float], limit: float
) -> dict[str, Any]:
    """One line of the table; `rates` of products in FLOP per second."""
    timing, need, operation = timings[candidate.name], candidate.need, candidate.operation
    rate = need.flop / timing.median
    ratio = timing.ratio(timings[INFERENCE])
    inference = operation in (INFERENCE, BOTH, FORWARD, STEP)
    return {
        "operation": operation,
        "implementation": candidate.implementation or None,
        "noise": candidate.noise or None,
        "milliseconds": 1e3 * timing.median,
        "per_cent_of_inference": 100 / ratio.median if inference else None,
        "low": 100 / ratio.high if inference else None,
        "high": 100 / ratio.low if inference else None,
        "limit_per_cent": limit if operation in (BOTH, STEP) else None,
        "per_cent_of_product": 100 * rate / rates[PRODUCT] if operation == UPDATE else None,
        "per_cent_of_square": 100 * rate / rates[SQUARE] if operation == UPDATE else None,
        "teraflop_per_second": rate / 1e12,
        "gigaflop": need.flop / 1e9,
        "gigaoperations": need.work.get(VECTOR, 0.0) / 1e9,
        "megabytes": need.moved / 1e6,
    }


def step_limit(shape: Shape) -> float:
    """Per cent of inference's throughput that the FLOP of forward and update leave: `100·M/(M + Ur)`."""
    rows = shape.members * shape.rows
    return 100.0 * rows / (rows + shape.units * shape.rank)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that decide."""
    figures: dict[str, Any] = {}
    for line in rows:
        key = "_".join(str(line[k]).replace(" ", "_") for k in ("operation", "implementation", "noise") if line[k])
        if line["operation"] in (FORWARD, STEP, BOTH):
            figures[f"{key}_per_cent_of_inference"] = line["per_cent_of_inference"]
        elif line["operation"] == UPDATE:
            figures[f"{key}_per_cent_of_product"] = line["per_cent_of_product"]
            figures[f"{key}_per_cent_of_square"] = line["per_cent_of_square"]
        else:
            figures[f"{key}_teraflop_per_second"] = line["teraflop_per_second"]
        if line["operation"] == BOTH:
            figures["full_step_limit_by_count_per_cent"] = line["limit_per_cent"]
    return figures


def main(argv: list[str] | None = None) -> None:
    """Measure what works, and report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = dataclasses.replace(options, width=64, population=32, square=128, rounds=3)
    for plugin in options.plugins:
        importlib.import_module(plugin)
    shape = Shape(options.population // 2, 2, 1, options.width, options.width, options.rank)
    found = products(shape, options.dtype, options.square)
    notes: list[str] = []
    for name in options.implementations or names():
        ready, missing = working(kernels(shape, options.distribution, options.dtype, name))
        found, notes = found + ready, notes + missing
    timings = interleave({candidate.name: candidate.call for candidate in found}, rounds=options.rounds)
    rates = {c.name: c.need.flop / timings[c.name].median for c in found if c.operation in (PRODUCT, SQUARE)}
    lines = [row(candidate, timings, rates, step_limit(shape)) for candidate in found]
    counts = [f"{c.operation}{', ' * bool(c.noise)}{c.noise}: {c.need.formula}" for c in found]
    report = Report("kernels", options, lines, notes=[*notes, *dict.fromkeys(counts), LEGEND], summary=summary(lines))
    report.finish(quick=options.quick, out=options.out)


def names() -> list[str]:
    """Every implementation of this platform, of either operation."""
    platform = jax.default_backend()
    both = (*implementations(FORWARD, platform=platform), *implementations(UPDATE, platform=platform))
    return list(dict.fromkeys(both))


if __name__ == "__main__":
    main()
