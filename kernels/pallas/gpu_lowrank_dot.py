"""`lowrank_dot` on Hopper GPUs: `x·A` in one pass over `x`, its product with `Bᵀ` when a tile of `x·W` is done.

TMA fills what lies beyond an array's end with zeros and leaves it alone when it stores: no size need be a multiple
of a tile. Sizes have to be multiples of 8 rows and 64 columns, as memory is swizzled; arrays that are not are padded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from .gpu_noise import GROUP, Noise, across, check_noise, lines, number_of, scratch, times
from .gpu_thin import thin_product
from .hopper import LINES, ROWS, THREADS, blocks, launch, load, tiled
from .registry import register
from .seeded import Factor, Seeded, need_seeds
from .tiling import GpuTiles, round_up

LARGEST_RANK = 16
MEMORY_REGISTERS = 40  # of the warpgroup that only starts copies; the others share the rest
SWIZZLED = 8, 64  # rows and columns of bfloat16 numbers that lie together


@register("lowrank_dot", "mosaic_gpu", platforms=("gpu",))
def lowrank_dot_gpu(
    x: jax.Array,
    w: jax.Array,
    left: Factor,
    right: Factor,
    *,
    scale: jax.Array | None = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    tiles: GpuTiles | None = None,
    interpret: Any = None,
) -> jax.Array:
    """All members at once: `x [M, R, K]`, keys `[U, 2]` with `M/U` members each, `scale [M]` → `[M, R, N]`."""
    left, right = need_seeds(left, right, LARGEST_RANK)
    check_supported(x, w, left, right, precision, preferred_element_type)
    count = blocks(interpret)
    members, rows, depth = x.shape
    columns = w.shape[1]
    out_dtype = jnp.dtype(x.dtype if preferred_element_type is None else preferred_element_type)
    tiles = tiles or GpuTiles.for_dot(members * rows, columns)
    x = _padded(x.reshape(members * rows, depth), tiles.rows, tiles.depth)
    w = _padded(w, x.shape[1], tiles.columns)
    size = round_up(members * rows, tiles.rows)
    each = members // left.key.shape[0] * rows
    left_keys, right_keys = (jnp.repeat(f.key, each, axis=0) for f in (left, right))
    scale = jnp.ones(members, jnp.float32) if scale is None else scale
    table = lines(left_keys, right_keys, jnp.repeat(scale, rows), size)
    thin = thin_product(x, table, left, count, interpret)
    out = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), out_dtype)
    out = _product((x, w, thin, table), right, tiles, out, count, interpret)
    return out[: members * rows, :columns].reshape(members, rows, columns)


def check_supported(x: Any, w: Any, left: Seeded, right: Seeded, precision: Any, preferred: Any) -> None:
    """Raises NotImplementedError where the kernels do not apply."""
    if x.dtype == w.dtype == jnp.float32:
        raise NotImplementedError(
            "float32: Hopper multiplies it as tf32 only, and wants w transposed for that; convert to bfloat16"
        )
    if x.dtype != w.dtype or x.dtype != jnp.bfloat16:
        raise NotImplementedError(f"x of {x.dtype} and w of {w.dtype}: both bfloat16")
    if precision is not None and not isinstance(precision, lax.Precision):  # those are all alike for bfloat16
        raise NotImplementedError(f"precision {precision}: None or a jax.lax.Precision")
    if preferred is not None and jnp.dtype(preferred) not in (x.dtype, jnp.float32):
        raise NotImplementedError(f"preferred_element_type {preferred}: that of x, or float32")
    if 0 in (*x.shape, *w.shape):
        raise NotImplementedError("arrays of size zero")
    check_noise(left, right)


def _padded(a: jax.Array, rows: int, columns: int) -> jax.Array:
    """At least one tile, and sizes that TMA can swizzle; most arrays are returned as they are."""
    want = [max(round_up(n, unit), least) for n, unit, least in zip(a.shape, SWIZZLED, (rows, columns), strict=True)]
    return jnp.pad(a, [(0, n - had) for n, had in zip(want, a.shape, strict=True)]) if want != [*a.shape] else a


def _product(
    operands: tuple[jax.Array, ...],
    factor: Seeded,
    tiles: GpuTiles,
    out: jax.ShapeDtypeStruct,
    count: int,
    interpret: Any,
) -> jax.Array:
    """`x·W + scale·thin·Bᵀ`; a block for each multiprocessor takes one tile after another."""
    grid = pl.cdiv(out.shape[0], tiles.rows), pl.cdiv(out.shape[1], tiles.columns)
    stage = tiles.stage_columns(out.dtype)
    staged = plgpu.SMEM((tiles.warpgroups, 2, ROWS, stage), out.dtype, transforms=tiled(stage, out.dtype))
    kernel = launch(
        partial(_kernel, factor=factor, tiles=tiles, grid=grid),
        out=out,
        grid=(min(count, grid[0] * grid[1]),),
        grid_names=("block",),
        interpret=interpret,
        num_threads=tiles.warpgroups + 1,
        thread_name=THREADS,
        scratch_types=[staged, *scratch(tiles.columns, factor, tiles.warpgroups)],
    )
    return kernel(*operands)


def _kernel(
    x: Any,
    w: Any,
    thin: Any,
    table: Any,
    out: Any,
    staged: Any,
    *words: Any,
    factor: Seeded,
    tiles: GpuTiles,
    grid: tuple[int, int],
) -> None:
    own = lax.axis_index(THREADS)

    def one_tile(index: Any, allocations: Any) -> None:
        # Blocks that run together share columns of W, which comes from memory once, and all of a small x.
        i, n = plgpu.planar_snake(index, grid, 0, min(grid[0], tiles.together))
        row, column = i * tiles.rows, n * tiles.columns
        block = row // ROWS + own
        noise = Noise(factor, table.at[2:4, block], words[0].at[own] if words else None, column)

        def multiply(step: Any, x_tile: Any, w_tile: Any, total: Any) -> Any:
            plgpu.wgmma(total, x_tile.at[pl.ds(own * ROWS, ROWS)], w_tile)
            pl.when(step[0] == 0)(noise.prepare)  # while the tensor cores work
            plgpu.wgmma_wait(0)
            return total

        def compute(run: Any) -> None:
            def scoped(total: Any) -> None:
                run(total)
                _finish(total[...], noise, thin, number_of(table, block), out, staged.at[own], row + own * ROWS)

            pl.run_scoped(scoped, plgpu.WGMMAAccumulatorRef((ROWS, tiles.columns), jnp.float32))

        slices = x.at[pl.ds(row, tiles.rows)], w.at[:, pl.ds(column, tiles.columns)]
        _pipeline(multiply, compute, x, w, tiles)(*slices, allocations=allocations)

    def every_tile(allocations: Any) -> None:
        plgpu.nd_loop((grid[0] * grid[1],), collective_axes="block")(lambda info: one_tile(info.index[0], allocations))

    slices = x.at[pl.ds(0, tiles.rows)], w.at[:, pl.ds(0, tiles.columns)]
    allocations = _pipeline(lambda *_: None, lambda _: None, x, w, tiles).get_allocations(*slices)
    pl.run_scoped(every_tile, allocations, collective_axes=THREADS)
    plgpu.wait_smem_to_gmem(0)


def _pipeline(body: Any, context: Any, x: Any, w: Any, tiles: GpuTiles) -> Any:
    """Runs `body` on the tiles of `x` and `w` along the depth, which one warpgroup fetches for the others."""
    return plgpu.emit_pipeline_warp_specialized(
        body,
        compute_context=context,
        grid=(pl.cdiv(x.shape[1], tiles.depth),),
        memory_registers=MEMORY_REGISTERS,
        max_concurrent_steps=tiles.steps,
        wg_axis=THREADS,
        num_compute_wgs=tiles.warpgroups,
        in_specs=[
            plgpu.BlockSpec((tiles.rows, tiles.depth), lambda k: (0, k), transforms=tiled(tiles.depth, x.dtype)),
            plgpu.BlockSpec((tiles.depth, tiles.columns), lambda k: (k, 0), transforms=tiled(tiles.columns, w.dtype)),
        ],
    )


def _finish(total: jax.Array, noise: Noise, thin: Any, scales: jax.Array, out: Any, staged: Any, row: Any) -> None:
    """Adds the correction to a warpgroup's part of a tile and writes it."""
    own = pl.ds(row, ROWS)
    stage = staged.shape[-1]
    turns, each = noise.turns()

    def corrected(value: jax.Array, start: int, turn: Any) -> jax.Array:
        for j, bits in enumerate(noise.bits(start, turn)):
            parts = [load(thin.at[s, turn * each + j, own], LINES) for s in range(thin.shape[0])]
            value += times(across(sum(parts) * scales), bits, noise.factor)
        return value

    for start in range(0, total.shape[1], GROUP):
        value = total[:, start : start + GROUP]
        if turns == 1:
            value = corrected(value, start, 0)
        else:
            value = lax.fori_loop(0, turns, lambda turn, v, start=start: corrected(v, start, turn), value)
        value = value.astype(out.dtype)
        for at in range(0, GROUP, stage):
            slot = staged.at[(start + at) // stage % 2]
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            slot[...] = value[:, at : at + stage]
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(slot, out.at[own, pl.ds(noise.first + start + at, stage)])
