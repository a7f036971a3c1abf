"""`rank_update` on Hopper GPUs: one product whose operands are made from counters, in shared memory.

Cycles of a multiprocessor for a tile of 128 × 256, a unit and a rank: 16 of wgmma for each product of bfloat16 parts;
12 to spread ±1 from its words, as compiled, and 14 for the words, where one serves 32 numbers. Over many tiles the
words are made once and kept in memory, 1/32 of the factors' numbers; then wgmma, which works on one step while the
next is made, sets the pace.

A float32 number is three bfloat16 parts. ±1 is one, exactly, so that its products with a weight's parts are exact,
too. Of normal noise six of the nine products of parts are made; the others are below float32's rounding.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from eggroll.ops.registry import register
from eggroll.ops.seeded import Factor, Seeded, need_seeds

from .gpu_noise import (
    GROUP,
    Noise,
    across,
    check_noise,
    lines,
    number_of,
    one_of,
    rounded,
    scratch,
    shared_words,
    stored_words,
    times,
)
from .hopper import ROWS, THREADS, WHOLE, blocks, launch, load, tiled
from .tiling import GpuTiles, Index, Ref, round_up

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
    parts = _parts_of(left)
    tiles = tiles or GpuTiles.for_update(left.size, right.size, parts[1])
    units = round_up(weights.shape[0], ROWS)
    grid = pl.cdiv(left.size, tiles.rows), pl.cdiv(right.size, tiles.columns)
    shape = grid[0] * tiles.rows, grid[1] * tiles.columns
    stored = tiles.stored and shared_words(GROUP, left) > 0
    words = [
        stored_words(f.key, replace(f, size=n), units) for f, n in zip((left, right), shape, strict=True) if stored
    ]
    start = [] if accumulator is None else [_fitted(accumulator.astype(jnp.float32), shape)]
    kernel = launch(
        partial(_kernel, left=left, right=right, tiles=tiles, steps=units // ROWS * left.rank, stored=stored),
        out=jax.ShapeDtypeStruct(shape, jnp.float32),
        grid=grid,
        grid_names=("rows", "columns"),
        interpret=interpret,
        num_threads=tiles.warpgroups,
        thread_name=THREADS,
        scratch_types=_memory(left, right, tiles, parts, stored),
    )
    out = kernel(lines(left.key, right.key, weights, units), *words, *start)
    return out if shape == (left.size, right.size) else out[: left.size, : right.size]


def check_supported(weights: jax.Array, left: Seeded, right: Seeded, accumulator: jax.Array | None) -> None:
    """Raises NotImplementedError where the kernel does not apply."""
    if jnp.float64 in (weights.dtype, left.dtype, getattr(accumulator, "dtype", None)):
        raise NotImplementedError("float64")
    if not weights.shape[0]:
        raise NotImplementedError("no members")
    check_noise(left, right)


def _fitted(a: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return a if a.shape == shape else jnp.pad(a, [(0, n - had) for n, had in zip(shape, a.shape, strict=True)])


def _parts_of(left: Seeded) -> tuple[int, int]:
    """How many bfloat16 numbers make one of `weights·A`, and of B."""
    if jnp.dtype(left.dtype).itemsize == 2:
        return 1, 1
    return 3, 1 if left.distribution == "rademacher" else 3


def _memory(left: Seeded, right: Seeded, tiles: GpuTiles, parts: tuple[int, int], stored: bool) -> dict[str, Any]:
    """Shared memory of a block."""
    bf16 = jnp.bfloat16
    own = tiles.columns // tiles.warpgroups
    memory = {
        "a": plgpu.SMEM((STAGES, parts[0], ROWS, tiles.rows), bf16, transforms=tiled(tiles.rows, bf16)),
        "b": plgpu.SMEM((STAGES, parts[1], ROWS, tiles.columns), bf16, transforms=tiled(tiles.columns, bf16)),
        "staged": plgpu.SMEM(
            (tiles.warpgroups, 2, ROWS, STAGE_COLUMNS), jnp.float32, transforms=tiled(STAGE_COLUMNS, jnp.float32)
        ),
        "filled": plgpu.Barrier(num_arrivals=tiles.warpgroups, num_barriers=STAGES),
        "freed": plgpu.Barrier(num_arrivals=tiles.warpgroups, num_barriers=STAGES),
    }
    for name, columns, factor in (("left_words", ROWS, left), ("right_words", own, right)):
        words = [] if stored else scratch(columns, factor, tiles.warpgroups)
        if words:
            memory[name] = words[0]
    return memory


def _kernel(
    table: Ref, *refs: Ref, left: Seeded, right: Seeded, tiles: GpuTiles, steps: int, stored: bool, **memory: Ref
) -> None:
    *start, out = refs[2:] if stored else refs
    own = lax.axis_index(THREADS)
    row = lax.axis_index("rows") * tiles.rows + own * ROWS
    column = lax.axis_index("columns") * tiles.columns
    scratched = [memory.pop(name).at[own] if name in memory else None for name in ("left_words", "right_words")]
    staged = memory.pop("staged").at[own]

    def noise(side: int, factor: Seeded, first: Index, columns: int, block: Index) -> Noise:
        if not stored:
            return Noise(factor, table.at[2 * side : 2 * side + 2, block], scratched[side], first)
        pairs = shared_words(columns, factor)
        return Noise(factor, None, refs[side].at[block, pl.ds(lax.div(first, columns) * pairs, pairs)], first)

    def fill(step: Index) -> None:
        block, rank = lax.div(step, left.rank), lax.rem(step, left.rank)
        share = tiles.columns // tiles.warpgroups
        a_noise = noise(0, left, row, ROWS, block)
        b_noise = noise(1, right, column + own * share, share, block)
        numbers = number_of(table, block), one_of(table, block)
        _fill(a_noise, b_noise, numbers, rank, lax.rem(step, STAGES), own, **memory)

    def multiply(total: Ref) -> None:
        pl.loop(0, steps)(lambda step: _step(step, steps, fill, total, own, **memory))
        _write(total[...], start, out, staged, row, column)

    fill(jnp.int32(0))
    pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, tiles.columns), jnp.float32))
    plgpu.wait_smem_to_gmem(0)


def _fill(
    left: Noise,
    right: Noise,
    numbers: tuple[jax.Array, jax.Array],
    rank: Index,
    stage: Index,
    own: Index,
    *,
    a: Ref,
    b: Ref,
    filled: Ref,
    **_: Any,
) -> None:
    """Makes a warpgroup's share of both operands, for one rank of 64 units."""

    @pl.when(rank == 0)
    def _() -> None:
        keys = left.own_keys(), right.own_keys()
        left.prepared(keys[0])
        right.prepared(keys[1])

    scales, ones = numbers
    bits = left.of_rank(0, rank)
    for part, value in enumerate(_weighted(scales, bits, left.factor, a.shape[1])):
        a[stage, part, :, pl.ds(own * ROWS, ROWS)] = value.astype(a.dtype)
    share = b.shape[-1] * ROWS // a.shape[-1]  # columns that this warpgroup makes for all
    for at in range(0, share, GROUP):
        number = times(across(ones), right.of_rank(at, rank), right.factor)
        for part, value in enumerate(_parts(number, b.shape[1])):
            b[stage, part, :, pl.ds(own * share + at, GROUP)] = value.astype(b.dtype)
    plgpu.commit_smem()
    plgpu.barrier_arrive(filled.at[stage])


def _step(
    step: Index, steps: int, fill: Any, total: Ref, own: Index, *, a: Ref, b: Ref, filled: Ref, freed: Ref
) -> None:
    """Multiplies what is there while making what is next."""
    stage = lax.rem(step, STAGES)
    plgpu.barrier_wait(filled.at[stage])
    for i, j in itertools.product(range(a.shape[1]), range(b.shape[1])):
        if i + j < a.shape[1]:  # 2⁻⁸ for each step of i and of j
            a_part = a.at[stage, i, :, pl.ds(own * ROWS, ROWS)]
            plgpu.wgmma(total, a_part.transpose((1, 0)), b.at[stage, j])

    @pl.when(step + 1 < steps)
    def _() -> None:
        pl.when(step > 0)(lambda: plgpu.barrier_wait(freed.at[lax.rem(step + 1, STAGES)]))
        fill(step + 1)

    plgpu.wgmma_wait(0)
    pl.when(step + STAGES < steps)(lambda: plgpu.barrier_arrive(freed.at[stage]))


def _weighted(scales: jax.Array, bits: jax.Array, factor: Seeded, count: int) -> list[jax.Array]:
    """Parts of each unit's weight times its noise, `[64, GROUP]`."""
    if factor.distribution == "rademacher":  # a sign: so a weight is parted once
        return [times(across(part), bits, factor) for part in _parts(scales, count)]
    return _parts(times(across(scales), bits, factor), count)


def _parts(value: jax.Array, count: int) -> list[jax.Array]:
    """float32 → `count` float32 that bfloat16 holds exactly, whose sum it is; all of it where `count` is 1."""
    if count == 1:
        return [value]
    parts = []
    for _ in range(count):
        parts.append(rounded(value))
        value = value - parts[-1]
    return parts


def _write(total: jax.Array, start: list[Ref], out: Ref, staged: Ref, row: Index, column: Index) -> None:
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
