"""Which share of what the device can do does each operation reach?

First the limits, measured in turns with everything else: the best rate of matrix products (square and tall), of
elementwise 32-bit operations, and of copying arrays of several sizes. Then, for every operation, the least that it
needs (`bench.tools.needs` counts FLOP, elementwise operations and bytes), the time that each limit asks for, of which
the largest counts, and the time it takes. `bound by` says which limit that is: compute (matrix products or elementwise
operations) or memory. Matrix and elementwise units count as working side by side, which a processor's do not. Copies of
at least the operation's size give the bandwidth: what fits a cache may move faster than memory does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import tyro

from bench.tools import needs, operations
from bench.tools.limits import HIGHEST, VECTOR, Limits, limits, probes
from bench.tools.operations import Operation
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import Timing, interleave


@dataclass(frozen=True)
class Options(Common):
    """Which share of what the device can do does each operation reach.

    Attributes:
        width: inputs and outputs of the layer; several for several layers.
        population: members, each with one row of input.
        mlp_population: members of the MLP 64-256-256-10, with `mlp_rows` rows that they share.
        mlp_rows: rows of the MLP.
        dtype: of weight, inputs and noise of the layer; the MLP is float32.
        rank: columns of each factor.
        distribution: of the factors of the steps; drawing is measured for both.
        matmul_sizes: sides of the matrix products that measure the limit; empty for sizes that suit the device.
        copy_megabytes: sizes of the arrays that measure the bandwidth.
        rounds: turns of each probe and operation.
    """

    width: tuple[int, ...] = (512, 2048)
    population: int = 4096
    mlp_population: int = 1024
    mlp_rows: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    rank: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"
    matmul_sizes: tuple[int, ...] = ()
    copy_megabytes: tuple[float, ...] = (1, 4, 16, 64, 256)
    rounds: int = 9


QUICK = {
    "width": (64,),
    "population": 256,
    "mlp_population": 16,
    "mlp_rows": 16,
    "matmul_sizes": (256,),
    "copy_megabytes": (1, 4),
    "rounds": 3,
}


def collect(options: Options) -> dict[str, Operation]:
    """Every operation at every width, and the MLP."""
    found = {}
    for width in options.width:
        found |= operations.of_layer(width, options.population, options.dtype, options.rank, options.distribution)
    rows, members = options.mlp_rows, options.mlp_population
    return found | operations.of_mlp(rows, members, options.rank, options.distribution)


def row(operation: Operation, timing: Timing, known: Limits) -> dict[str, Any]:
    """One line of the table."""
    need = operation.need
    seconds = need.seconds(known)
    bound = max(seconds, key=seconds.__getitem__)
    share = 100 * seconds[bound] / timing.median if timing.median > 0 else None
    return {
        "operation": operation.name,
        "width": operation.width,
        "gigaflop": need.flop / 1e9,
        "gigaoperations": need.work.get(VECTOR, 0.0) / 1e9,
        "megabytes": need.moved / 1e6,
        "limit_ms": 1e3 * seconds[bound],
        "measured_ms": 1e3 * timing.median,
        "share_per_cent": share,
        "bound_by": "memory" if bound == "memory" else "compute",
        "limit": bound,
        "needs": need.formula,
    }


def difference(of: Timing, without: Timing) -> Timing:
    """What `of` takes beyond `without`, round by round."""
    return Timing(of.name, tuple(a - b for a, b in zip(of.seconds, without.seconds, strict=True)))


def table(found: Mapping[str, Operation], timings: Mapping[str, Timing], known: Limits) -> list[dict[str, Any]]:
    """One row per operation."""
    lines = []
    for name, operation in found.items():
        timing = timings[operation.timed or name]
        if operation.beyond is not None:
            timing = difference(timing, timings[operation.beyond])
        lines.append(row(operation, timing, known))
    return lines


def summary(known: Limits, lines: list[dict[str, Any]], found: Mapping[str, Operation]) -> dict[str, Any]:
    """The limits, the shares, and how fast noise is drawn."""
    figures: dict[str, Any] = {
        f"matmul_gigaflop_per_second_{name.replace(' ', '_')}": rate / 1e9
        for name, rate in known.rates.items()
        if name != VECTOR
    }
    figures["elementwise_gigaoperations_per_second"] = known.rates[VECTOR] / 1e9
    for size, rate in known.copies.items():
        figures[f"copy_gigabytes_per_second_{size / 2**20:g}_MB"] = rate / 1e9
    for line, operation in zip(lines, found.values(), strict=True):
        if operation.numbers:
            rate = operation.numbers / (1e3 * line["measured_ms"])
            figures[f"{operation.name.replace(' ', '_')}_millions_per_second_{line['width']}"] = rate
    return figures


def main(argv: list[str] | None = None) -> None:
    """Measure limits and operations in turns, and report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = dataclasses.replace(options, **QUICK)
    sizes = options.matmul_sizes or ((1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192))
    measured, found = probes(options.dtype, sizes, options.copy_megabytes), collect(options)
    calls = {name: probe.call for name, probe in measured.items()}
    calls |= {name: operation.call for name, operation in found.items() if operation.call is not None}
    timings = interleave(calls, rounds=options.rounds)
    known = limits(measured, timings)
    report = Report("roofline", options, rows=table(found, timings, known))
    report.summary = summary(known, report.rows, found)
    report.notes = [
        "limit ms: the largest of FLOP / matmul rate, operations / elementwise rate and bytes / bandwidth; measured "
        "ms: median; share: limit / measured. Limits are the fastest round of the best probe.",
        f"Sums over members count at the rate of {HIGHEST}: they are float32 whatever the dtype. {needs.LEGEND}",
    ]
    report.finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
