"""`rank_update` on Hopper GPUs: one product whose operands are made from counters, in shared memory.

Cycles of a multiprocessor for a tile of 128 × 256, a unit and a rank: 16 of wgmma for each part of `weights·A`; 14 for
the 12 words, where one serves 32 numbers, and 12 to spread them, as compiled. wgmma works on one step while the next is
made: integers set the pace for bfloat16 noise (one part), wgmma for float32 noise (three).

A float32 weight is three bfloat16 parts, and ±1 is exact: so their products are, and are summed in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .gpu_noise import GROUP, Noise, across, check_noise, lines, number_of, rounded, scratch, times
from .hopper import ROWS, THREADS, WHOLE, blocks, launch, load, tiled
from .registry import register
from .seeded import Factor, Seeded, need_seeds
from .tiling import GpuTiles, round_up

LARGEST_RANK = 16
STAGES = 2  # one is multiplied while the other is filled
STAGE_COLUMNS = 32  # of the result that are written at once


@register("rank_update", "mosaic_gpu", platforms=("gpu",))
def rank_update_gpu(
    weights: jax.Array,
    left: Factor,
    right: Factor,
    *,
    accumulator: jax.Array | None = None,
    tiles: GpuTiles | None = None,
    interpret: Any = None,
) -> jax.Array:
    """`accumulator + Σ_u weights[u]·A_u·B_uᵀ`, `[m, n]` float32, for keys `[U, 2]`."""
    left, right = need_seeds(left, right, LARGEST_RANK)
    check_supported(weights, left, right, accumulator)
    blocks(interpret)  # is this the chip?
    tiles = tiles or GpuTiles.for_update(left.size, right.size)
    units = round_up(weights.shape[0], ROWS)
    grid = pl.cdiv(left.size, tiles.rows), pl.cdiv(right.size, tiles.columns)
    shape = grid[0] * tiles.rows, grid[1] * tiles.columns
    start = [] if accumulator is None else [_fitted(accumulator.astype(jnp.float32), shape)]
    parts = 1 if jnp.dtype(left.dtype).itemsize == 2 else 3
    kernel = launch(
        partial(_kernel, left=left, right=right, tiles=tiles, steps=units // ROWS * left.rank),
        out=jax.ShapeDtypeStruct(shape, jnp.float32),
        grid=grid,
        grid_names=("rows", "columns"),
        interpret=interpret,
        num_threads=tiles.warpgroups,
        thread_name=THREADS,
        scratch_types=_memory(left, right, tiles, parts),
    )
    out = kernel(lines(left.key, right.key, weights, units), *start)
    return out if shape == (left.size, right.size) else out[: left.size, : right.size]


def check_supported(weights: Any, left: Seeded, right: Seeded, accumulator: Any) -> None:
    """Raises NotImplementedError where the kernel does not apply."""
    if jnp.float64 in (weights.dtype, left.dtype, getattr(accumulator, "dtype", None)):
        raise NotImplementedError("float64")
    if not weights.shape[0]:
        raise NotImplementedError("no members")
    if left.distribution == "normal" and jnp.dtype(left.dtype) == jnp.float32:
        raise NotImplementedError("normal noise of float32: its products are not exact in bfloat16; use bfloat16 noise")
    check_noise(left, right)


def _fitted(a: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return a if a.shape == shape else jnp.pad(a, [(0, n - had) for n, had in zip(shape, a.shape, strict=True)])


def _memory(left: Seeded, right: Seeded, tiles: GpuTiles, parts: int) -> dict[str, Any]:
    """Shared memory of a block."""
    bf16 = jnp.bfloat16
    own = tiles.columns // tiles.warpgroups
    memory = {
        "a": plgpu.SMEM((STAGES, parts, ROWS, tiles.rows), bf16, transforms=tiled(tiles.rows, bf16)),
        "b": plgpu.SMEM((STAGES, ROWS, tiles.columns), bf16, transforms=tiled(tiles.columns, bf16)),
        "staged": plgpu.SMEM(
            (tiles.warpgroups, 2, ROWS, STAGE_COLUMNS), jnp.float32, transforms=tiled(STAGE_COLUMNS, jnp.float32)
        ),
        "filled": plgpu.Barrier(num_arrivals=tiles.warpgroups, num_barriers=STAGES),
        "freed": plgpu.Barrier(num_arrivals=tiles.warpgroups, num_barriers=STAGES),
    }
    for name, columns, factor in (("left_words", ROWS, left), ("right_words", own, right)):
        words = scratch(columns, factor, tiles.warpgroups)
        if words:
            memory[name] = words[0]
    return memory


def _kernel(table: Any, *refs: Any, left: Seeded, right: Seeded, tiles: GpuTiles, steps: int, **memory: Any) -> None:
    *start, out = refs
    own = lax.axis_index(THREADS)
    row = lax.axis_index("rows") * tiles.rows + own * ROWS
    column = lax.axis_index("columns") * tiles.columns
    words = [memory.pop(name).at[own] if name in memory else None for name in ("left_words", "right_words")]
    staged = memory.pop("staged").at[own]

    def fill(step: Any) -> None:
        block, rank = lax.div(step, left.rank), lax.rem(step, left.rank)
        first = column + own * (tiles.columns // tiles.warpgroups)
        a_noise = Noise(left, table.at[:2, block], words[0], row)
        b_noise = Noise(right, table.at[2:4, block], words[1], first)
        _fill(a_noise, b_noise, number_of(table, block), rank, lax.rem(step, STAGES), own, **memory)

    def multiply(total: Any) -> None:
        pl.loop(0, steps)(lambda step: _step(step, steps, fill, total, own, **memory))
        _write(total[...], start, out, staged, row, column)

    fill(jnp.int32(0))
    pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, tiles.columns), jnp.float32))
    plgpu.wait_smem_to_gmem(0)


def _fill(
    left: Noise,
    right: Noise,
    scales: jax.Array,
    rank: Any,
    stage: Any,
    own: Any,
    *,
    a: Any,
    b: Any,
    filled: Any,
    **_: Any,
) -> None:
    """Makes a warpgroup's share of both operands, for one rank of 64 units."""

    @pl.when(rank == 0)
    def _() -> None:
        keys = left.own_keys(), right.own_keys()
        left.prepared(keys[0])
        right.prepared(keys[1])

    bits = left.of_rank(0, rank)
    for part, scale in enumerate(_parts(scales, a.shape[1])):
        a[stage, part, :, pl.ds(own * ROWS, ROWS)] = times(across(scale), bits, left.factor).astype(a.dtype)
    one = plgpu.layout_cast(jnp.ones((ROWS, GROUP), jnp.float32), WHOLE)
    share = b.shape[-1] * ROWS // a.shape[-1]  # columns that this warpgroup makes for all
    for at in range(0, share, GROUP):
        value = times(one, right.of_rank(at, rank), right.factor).astype(b.dtype)
        b[stage, :, pl.ds(own * share + at, GROUP)] = value
    plgpu.commit_smem()
    plgpu.barrier_arrive(filled.at[stage])


def _step(step: Any, steps: int, fill: Any, total: Any, own: Any, *, a: Any, b: Any, filled: Any, freed: Any) -> None:
    """Multiplies what is there while making what is next."""
    stage = lax.rem(step, STAGES)
    plgpu.barrier_wait(filled.at[stage])
    for part in range(a.shape[1]):
        a_part = a.at[stage, part, :, pl.ds(own * ROWS, ROWS)]
        plgpu.wgmma(total, a_part.transpose((1, 0)), b.at[stage])

    @pl.when(step + 1 < steps)
    def _() -> None:
        pl.when(step > 0)(lambda: plgpu.barrier_wait(freed.at[lax.rem(step + 1, STAGES)]))
        fill(step + 1)

    plgpu.wgmma_wait(0)
    pl.when(step + STAGES < steps)(lambda: plgpu.barrier_arrive(freed.at[stage]))


def _parts(scale: jax.Array, count: int) -> list[jax.Array]:
    """float32 → `count` float32 that bfloat16 holds exactly, whose sum it is; all of it where `count` is 1."""
    if count == 1:
        return [scale]
    parts = []
    for _ in range(count):
        parts.append(rounded(scale))
        scale = scale - parts[-1]
    return parts


def _write(total: jax.Array, start: list[Any], out: Any, staged: Any, row: Any, column: Any) -> None:
    """A warpgroup's part of a tile, added to what there was."""
    own = pl.ds(row, ROWS)
    for at in range(0, total.shape[1], STAGE_COLUMNS):
        place = own, pl.ds(column + at, STAGE_COLUMNS)
        value = total[:, at : at + STAGE_COLUMNS]
        if start:
            value += load(start[0].at[place], WHOLE)
        slot = staged.at[at // STAGE_COLUMNS % 2]
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
        slot[...] = value
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(slot, out.at[place])
