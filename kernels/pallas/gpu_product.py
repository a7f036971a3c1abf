"""`x·W + scale·thin·Bᵀ` on Hopper GPUs: a block for each multiprocessor takes one tile after another.

TMA fills what lies beyond an array's end with zeros and leaves it alone when it stores: no size need be a multiple
of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from eggroll.ops.seeded import Seeded

from .gpu_correction import Correction
from .gpu_noise import GROUP, Noise, number_of, scratch
from .hopper import ROWS, THREADS, Turn, launch, tiled, turn_memory
from .tiling import GpuTiles, Index, Ref

MEMORY_REGISTERS = 40  # of the warpgroup that only starts copies; the others share the rest
CLUSTER = "cluster"  # the axis of blocks that share tiles of W


def product(
    operands: tuple[jax.Array, ...],
    factors: tuple[Seeded, Seeded],
    tiles: GpuTiles,
    out: jax.ShapeDtypeStruct,
    count: int,
    interpret: Any,
) -> jax.Array:
    """The product with its correction.

    Args:
        operands: `x [P, K]`, `w [K, N]`, `lines` of the rows, and `thin [S, rank, rows]` unless `tiles.within`.
        factors: A and B; their keys are not used.
        tiles: their sizes; `lines` has a multiple of `tiles.rows · tiles.cluster` rows.
        out: `[P, N]`.
        count: blocks that run at once.
        interpret: None, or parameters of the interpreter.

    Returns:
        `[P, N]`.
    """
    grid = pl.cdiv(out.shape[0], tiles.rows * tiles.cluster), pl.cdiv(out.shape[1], tiles.columns)
    names: dict[str, Any] = {
        "grid": (min(max(1, count // tiles.cluster), grid[0] * grid[1]),),
        "grid_names": ("block",),
    }
    if tiles.cluster > 1:
        names |= {"cluster": (tiles.cluster,), "cluster_names": (CLUSTER,)}
    kernel = launch(
        partial(_kernel, factors=factors, tiles=tiles, grid=grid),
        out=out,
        interpret=interpret,
        num_threads=tiles.warpgroups + 1,
        thread_name=THREADS,
        scratch_types=_memory(factors, tiles, operands[1].dtype, out.dtype),
        **names,
    )
    return kernel(*operands)


def _memory(factors: tuple[Seeded, Seeded], tiles: GpuTiles, dtype: DTypeLike, out_dtype: DTypeLike) -> dict[str, Any]:
    """Shared memory of a block, beside the tiles that are on their way."""
    stage = tiles.stage_columns(out_dtype)
    own = tiles.warpgroups, tiles.each
    memory = {
        "staged": plgpu.SMEM((tiles.warpgroups, 2, ROWS, stage), out_dtype, transforms=tiled(stage, out_dtype)),
        "scaled": plgpu.SMEM((*own, factors[1].rank, ROWS), jnp.float32),
    }
    for name, columns, factor in (
        ("left_words", GROUP * tiles.within, factors[0]),
        ("words", tiles.columns, factors[1]),
    ):
        words = scratch(columns, factor, *own)
        if words:
            memory[name] = words[0]
    return memory | (turn_memory(tiles) if dtype == jnp.float32 else {})


def _kernel(
    x: Ref,
    w: Ref,
    table: Ref,
    *refs: Ref,
    factors: tuple[Seeded, Seeded],
    tiles: GpuTiles,
    grid: tuple[int, int],
    **memory: Ref,
) -> None:
    *thin, out = refs

    def every_tile(allocations: Ref) -> None:
        def one_tile(info: Any) -> None:
            # Blocks that run together share columns of W, which comes from memory once, and all of a small x.
            i, n = plgpu.planar_snake(info.index[0], grid, 0, min(grid[0], tiles.together))
            below = lax.axis_index(CLUSTER) if tiles.cluster > 1 else 0
            row = (i * tiles.cluster + below) * tiles.rows
            tile = _Tile(
                (x, w, table, thin[0] if thin else None, out),
                factors,
                tiles,
                memory,
                row,
                n * tiles.columns,
                allocations,
            )
            tile.compute(info.local_index)

        plgpu.nd_loop((grid[0] * grid[1],), collective_axes="block")(one_tile)

    slices = x.at[pl.ds(0, tiles.rows)], w.at[:, pl.ds(0, tiles.columns)]
    allocations = _pipeline(lambda *_: None, lambda _: None, x, w, tiles).get_allocations(*slices)
    pl.run_scoped(every_tile, allocations, collective_axes=THREADS)
    plgpu.wait_smem_to_gmem(0)


@dataclass(frozen=True)
class _Tile:
    """One tile of the result, as one warpgroup sees it.

    Attributes:
        refs: to x, W, lines, thin or None, and the result.
        factors: A and B.
        tiles: sizes.
        memory: as `_memory` has it.
        row: first of the tile.
        column: first of the tile.
        allocations: of the pipeline.
    """

    refs: tuple[Ref, ...]
    factors: tuple[Seeded, Seeded]
    tiles: GpuTiles
    memory: Mapping[str, Ref]
    row: Index
    column: Index
    allocations: Ref

    def compute(self, number: Index) -> None:
        """All of it; `number` counts the tiles of this block."""
        x, w, *_, out = self.refs
        tiles, own = self.tiles, lax.axis_index(THREADS)
        multiply = self.turning(number) if w.dtype == jnp.float32 else self.plain

        def scoped(run: Any, total: Ref) -> None:
            run(total)
            value = total[...]
            if w.dtype == jnp.float32:
                plgpu.barrier_arrive(self.free(self.steps - 1))
            for j in range(tiles.each):
                self.correction(j).finish(value[j * ROWS : (j + 1) * ROWS], out, self.memory["staged"].at[own])

        def context(run: Any) -> None:
            total = plgpu.WGMMAAccumulatorRef((ROWS * tiles.each, tiles.columns), jnp.float32)
            pl.run_scoped(partial(scoped, run), total)

        slices = x.at[pl.ds(self.row, tiles.rows)], w.at[:, pl.ds(self.column, tiles.columns)]
        _pipeline(multiply, context, x, w, tiles)(*slices, allocations=self.allocations)

    def plain(self, step: tuple[Index, ...], x: Ref, w: Ref, total: Ref) -> Any:
        """One step along the depth."""
        plgpu.wgmma(total, x.at[self.mine], w)
        pl.when(step[0] == 0)(self.prepare)  # while the tensor cores work
        if self.tiles.within:
            self.gather(step[0], x)
        plgpu.wgmma_wait(0)
        return total

    def turning(self, number: Index) -> Callable[..., Any]:
        """The same for float32 weights: each is turned while the one before it is multiplied."""
        turn = Turn(self.memory["turned"], self.memory["filled"], lax.axis_index(THREADS))

        def step_of(step: tuple[Index, ...], x: Ref, w: Ref, _: Any, turned: Ref, total: Ref) -> Any:
            own = turn(w, number * self.steps + step[0], self.tiles.warpgroups)
            plgpu.barrier_arrive(turned)
            plgpu.wgmma(total, x.at[self.mine], own)
            pl.when(step[0] == 0)(self.prepare)
            plgpu.wgmma_wait(1)
            pl.when(step[0] > 0)(lambda: plgpu.barrier_arrive(self.free(step[0] - 1)))
            return total

        return step_of

    @property
    def steps(self) -> int:
        """Along the depth."""
        return pl.cdiv(self.refs[0].shape[1], self.tiles.depth)

    @property
    def mine(self) -> Any:
        """Rows of the tile that this warpgroup has."""
        rows = ROWS * self.tiles.each
        return pl.ds(lax.axis_index(THREADS) * rows, rows)

    def free(self, step: Index) -> Any:
        """The barrier that frees the tile of x of a step."""
        return self.allocations["flat_consumed_barrier_refs"][0].at[lax.rem(step, min(self.tiles.steps, self.steps))]

    def prepare(self) -> None:
        """What the corrections want, before they are in a hurry."""
        for j in range(self.tiles.each):
            self.correction(j).prepare()

    def gather(self, step: Index, x: Ref) -> None:
        """A step's part of the thin product, from the tile of x that the tensor cores read, too."""
        own, table = lax.axis_index(THREADS), self.refs[2]
        words = self.memory["left_words"].at[own, 0] if "left_words" in self.memory else None
        keys = table.at[:2, self.row // ROWS + own]
        self.correction(0).gather(Noise(self.factors[0], keys, words, step * GROUP), x.at[self.mine])

    def correction(self, j: int) -> Correction:
        """Of this warpgroup's rows from `64·j` on."""
        _, _, table, thin, _ = self.refs
        own = lax.axis_index(THREADS)
        block = self.row // ROWS + own * self.tiles.each + j
        words = self.memory["words"].at[own, j] if "words" in self.memory else None
        noise = Noise(self.factors[1], table.at[2:4, block], words, self.column)
        return Correction(noise, thin, number_of(table, block), self.memory["scaled"].at[own, j], block)


def _pipeline(body: Any, context: Any, x: Ref, w: Ref, tiles: GpuTiles) -> Any:
    """Runs `body` on the tiles of `x` and `w` along the depth, which one warpgroup fetches for the others."""
    shared: dict[str, Any] = {"collective_axes": (CLUSTER,)} if tiles.cluster > 1 else {}
    own, other = tiled(tiles.depth, x.dtype), tiled(tiles.columns, w.dtype)
    return plgpu.emit_pipeline_warp_specialized(
        body,
        compute_context=context,
        grid=(pl.cdiv(x.shape[1], tiles.depth),),
        memory_registers=MEMORY_REGISTERS,
        max_concurrent_steps=tiles.steps,
        manual_consumed_barriers=w.dtype == jnp.float32,
        wg_axis=THREADS,
        num_compute_wgs=tiles.warpgroups,
        in_specs=[
            plgpu.BlockSpec((tiles.rows, tiles.depth), lambda k: (0, k), transforms=own),
            plgpu.BlockSpec((tiles.depth, tiles.columns), lambda k: (k, 0), transforms=other, **shared),
        ],
    )
