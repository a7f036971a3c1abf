"""Which tiles suit a Hopper GPU? Each kernel with the tiles that it chooses, and with others, in turns with inference.

The same layer as `bench.kernels`: width 8192, population 1024, one row a member, noise on the fly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from bench.kernels import working
from bench.tools.kernel_candidates import INFERENCE, PRODUCT, Candidate, normal, products, weight
from bench.tools.kernel_shapes import PAPER, Shape
from bench.tools.needs import Need
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import interleave
from eggroll.kernels.gpu_lowrank_dot import lowrank_dot_gpu
from eggroll.kernels.gpu_rank_update import rank_update_gpu
from eggroll.kernels.tiling import GpuTiles
from eggroll.ops.truth import seeded

NOTHING = Need("")  # is counted here


@dataclass(frozen=True)
class Options(Common):
    """Which tiles suit a Hopper GPU?

    Attributes:
        width: inputs and outputs of the layer.
        population: members, in pairs, each with one row of input.
        dtype: of weight, inputs and noise.
        rank: columns of each factor.
        rounds: turns of each candidate.
    """

    width: int = PAPER.depth
    population: int = PAPER.members
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    rank: int = 1
    rounds: int = 7


def dot_tiles(shape: Shape, dtype: str) -> dict[str, GpuTiles]:
    """Tiles of `lowrank_dot`, by what they change of those chosen."""
    chosen = GpuTiles.for_dot(shape.members * shape.rows, shape.columns, dtype, shape.rank)
    found = {"chosen": chosen, "cluster 1": replace(chosen, cluster=1), "cluster 2": replace(chosen, cluster=2)}
    found |= {f"together {n}": replace(chosen, together=n) for n in (4, 8, 16)}
    if dtype == "float32":
        return found | {"each 1": replace(chosen, each=1, steps=4)}
    within = replace(chosen, within=True)
    return found | {
        "thin within": within,
        "thin within, cluster 2": replace(within, cluster=2),
        "columns 128": replace(chosen, columns=128, steps=6),
        "each 2": replace(chosen, columns=128, each=2),
    }


def update_tiles(shape: Shape) -> dict[str, GpuTiles]:
    """Tiles of `rank_update`."""
    chosen = GpuTiles.for_update(shape.depth, shape.columns, parts=1)
    found = {"chosen": chosen, "stored": replace(chosen, stored=True), "made": replace(chosen, stored=False)}
    return found | {"columns 128": replace(chosen, columns=128)}


def candidates(shape: Shape, dtype: str) -> Iterator[Candidate]:
    """Both kernels with all tiles."""
    left, right = (
        seeded(i, shape.units, n, shape.rank, "rademacher", dtype) for i, n in enumerate((shape.depth, shape.columns))
    )
    x, w = normal(0, (shape.members, shape.rows, shape.depth), dtype), weight(shape, dtype)
    scores = normal(5, (shape.units,), "float32")
    scale = jnp.asarray((1.0, -1.0) * shape.units)
    for name, tiles in dot_tiles(shape, dtype).items():
        call = jax.jit(partial(lowrank_dot_gpu, tiles=tiles))
        yield Candidate("lowrank_dot", partial(call, x, w, left, right, scale=scale), NOTHING, noise=name)
    for name, tiles in update_tiles(shape).items():
        call = jax.jit(partial(rank_update_gpu, tiles=tiles))
        yield Candidate("rank_update", partial(call, scores, left, right), NOTHING, noise=name)


def main(argv: list[str] | None = None) -> None:
    """Measure what works, and report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.quick:
        options = dataclasses.replace(options, width=256, population=256, rounds=3)
    shape = Shape(options.population // 2, 2, 1, options.width, options.width, options.rank)
    plain = [c for c in products(shape, options.dtype, square=128) if c.operation in (INFERENCE, PRODUCT)]
    ready, notes = working(list(candidates(shape, options.dtype)))
    timings = interleave({c.name: c.call for c in [*plain, *ready]}, rounds=options.rounds)

    def row(candidate: Candidate) -> dict[str, Any]:
        beside = timings[INFERENCE if candidate.operation == "lowrank_dot" else PRODUCT]
        ratio = timings[candidate.name].ratio(beside)
        return {
            "operation": candidate.operation,
            "tiles": candidate.noise,
            "per_cent_of_inference_or_product": 100 / ratio.median,
            "low": 100 / ratio.high,
            "high": 100 / ratio.low,
        }

    lines = [row(candidate) for candidate in ready]
    summary = {f"{line['operation']}, {line['tiles']}": line["per_cent_of_inference_or_product"] for line in lines}
    Report("gpu_tiles", options, lines, notes=notes, summary=summary).finish(quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
