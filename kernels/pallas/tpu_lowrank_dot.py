"""`lowrank_dot` on TPUs: the thin product in one pass over `x`, its correction in the base product's last step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from eggroll.ops.registry import register
from eggroll.ops.seeded import Factor, Seeded, need_seeds

from .tiling import Index, Ref, Tiles
from .tpu_chip import chip
from .tpu_noise import check_noise, tile

LARGEST_RANK = 16
OWN_ROWS = 128  # rows of a member that fill a tile; with fewer, members share tiles and every row makes its own noise
LEAST = Tiles(rows=16, columns=128, depth=128)  # what bfloat16 and float32 registers hold


@register("lowrank_dot", "mosaic_tpu", platforms=("tpu",))
def lowrank_dot_tpu(
    x: jax.Array,
    w: jax.Array,
    left: Factor,
    right: Factor,
    *,
    scale: jax.Array | None = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    tiles: Tiles | None = None,
    interpret: Any = False,
) -> jax.Array:
    """All members at once: `x [M, R, K]`, keys `[U, 2]` with `M/U` members each, `scale [M]` → `[M, R, N]`."""
    left, right = need_seeds(left, right, LARGEST_RANK)
    check_supported(x, w, precision, preferred_element_type)
    check_noise(left, right)
    members, rows, depth = x.shape
    signs = members // left.key.shape[0]
    if rows < OWN_ROWS:
        left_keys, right_keys = (jnp.repeat(f.key, signs * rows, axis=0)[None] for f in (left, right))  # [1, M·R, 2]
        x, per_unit = x.reshape(1, members * rows, depth), 1
    else:
        left_keys, right_keys, per_unit = left.key[:, None], right.key[:, None], signs
    tiles = (tiles or chip().tiles(x.dtype.itemsize)).fitted(x.shape[1], w.shape[1], depth, least=LEAST)
    thin = _thin(x, left_keys, left, per_unit, tiles, interpret)
    if scale is not None:
        thin = (thin.reshape(members, -1) * scale.astype(jnp.float32)[:, None]).reshape(thin.shape)
    out_dtype = jnp.dtype(x.dtype if preferred_element_type is None else preferred_element_type)
    out = _dot(x, w, thin, right_keys, right, per_unit, tiles, precision, out_dtype, interpret)
    return out.reshape(members, rows, w.shape[1])


def check_supported(x: jax.Array, w: jax.Array, precision: lax.PrecisionLike, preferred: DTypeLike | None) -> None:
    """Raises NotImplementedError where the kernels do not apply."""
    if x.dtype != w.dtype or x.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"x of {x.dtype} and w of {w.dtype}: both float32 or both bfloat16")
    if precision not in (None, lax.Precision.DEFAULT, lax.Precision.HIGHEST):
        raise NotImplementedError(f"precision {precision}: None, DEFAULT or HIGHEST")
    if preferred is not None and jnp.dtype(preferred) not in (x.dtype, jnp.float32):
        raise NotImplementedError(f"preferred_element_type {preferred}: that of x, or float32")
    if 0 in (*x.shape, *w.shape):
        raise NotImplementedError("arrays of size zero")


def _thin(x: jax.Array, keys: jax.Array, factor: Seeded, per_unit: int, tiles: Tiles, interpret: Any) -> jax.Array:
    """`x·A`, `[G, R, r]` float32: a row's numbers stay in registers."""
    groups, rows, depth = x.shape
    kernel = partial(_thin_kernel, factor=factor, size=depth, tile_depth=tiles.depth)
    return pl.pallas_call(
        kernel,
        grid=(groups, pl.cdiv(rows, tiles.rows), pl.cdiv(depth, tiles.depth)),
        in_specs=[
            _keys_spec(keys, tiles.rows, per_unit),
            pl.BlockSpec((None, tiles.rows, tiles.depth), lambda g, i, k: (g, i, k)),
        ],
        out_specs=pl.BlockSpec((None, tiles.rows, factor.rank), lambda g, i, k: (g, i, 0)),
        out_shape=jax.ShapeDtypeStruct((groups, rows, factor.rank), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="lowrank_dot_thin",
    )(keys, x)


def _thin_kernel(keys: Ref, x: Ref, out: Ref, *, factor: Seeded, size: int, tile_depth: int) -> None:
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    values = _masked(x[...], 1, size - k * tile_depth, size % tile_depth).astype(jnp.float32)
    numbers = tile(keys[...], k * tile_depth, tile_depth, factor)
    out[...] += jnp.concatenate([jnp.sum(values * n, axis=1, keepdims=True) for n in numbers], axis=1)


def _dot(
    x: jax.Array,
    w: jax.Array,
    thin: jax.Array,
    keys: jax.Array,
    factor: Seeded,
    per_unit: int,
    tiles: Tiles,
    precision: lax.PrecisionLike,
    out_dtype: jnp.dtype,
    interpret: Any,
) -> jax.Array:
    """`x·W + thin·Bᵀ`, `[G, R, N]`."""
    groups, rows, depth = x.shape
    columns = w.shape[1]
    grid = groups, pl.cdiv(rows, tiles.rows), pl.cdiv(columns, tiles.columns), pl.cdiv(depth, tiles.depth)
    semantics = ("parallel", "parallel", "parallel", "arbitrary")
    return pl.pallas_call(
        partial(_dot_kernel, factor=factor, size=depth, tiles=tiles, precision=precision),
        grid=grid,
        in_specs=[
            _keys_spec(keys, tiles.rows, per_unit),
            pl.BlockSpec((None, tiles.rows, factor.rank), lambda g, i, n, k: (g, i, 0)),
            pl.BlockSpec((None, tiles.rows, tiles.depth), lambda g, i, n, k: (g, i, k)),
            pl.BlockSpec((tiles.depth, tiles.columns), lambda g, i, n, k: (k, n)),
        ],
        out_specs=pl.BlockSpec((None, tiles.rows, tiles.columns), lambda g, i, n, k: (g, i, n)),
        out_shape=jax.ShapeDtypeStruct((groups, rows, columns), out_dtype),
        scratch_shapes=[pltpu.VMEM((tiles.rows, tiles.columns), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=chip().limit),
        interpret=interpret,
        name="lowrank_dot",
    )(keys, thin, x, w)


def _dot_kernel(
    keys: Ref,
    thin: Ref,
    x: Ref,
    w: Ref,
    out: Ref,
    total: Ref,
    *,
    factor: Seeded,
    size: int,
    tiles: Tiles,
    precision: lax.PrecisionLike,
) -> None:
    n, k = pl.program_id(2), pl.program_id(3)

    @pl.when(k == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    left, ragged = size - k * tiles.depth, size % tiles.depth
    total[...] += jnp.dot(
        _masked(x[...], 1, left, ragged),
        _masked(w[...], 0, left, ragged),
        precision=precision,
        preferred_element_type=jnp.float32,
    )

    @pl.when(k == pl.num_programs(3) - 1)
    def _() -> None:
        result = total[...]
        for j, numbers in enumerate(tile(keys[...], n * tiles.columns, tiles.columns, factor)):
            result += thin[:, j : j + 1] * numbers
        out[...] = result.astype(out.dtype)


def _keys_spec(keys: jax.Array, rows: int, per_unit: int) -> Any:
    """A key for each row of a tile, or one for the tile: that of the member's unit."""
    if keys.shape[1] == 1:
        return pl.BlockSpec((None, 1, 2), lambda g, i, *_: (g // per_unit, 0, 0))
    return pl.BlockSpec((None, rows, 2), lambda g, i, *_: (g, i, 0))


def _masked(value: jax.Array, axis: int, left: Index, ragged: int) -> jax.Array:
    """Zero beyond the array's end, where a tile may hold anything; nothing to do where tiles fit."""
    if not ragged:
        return value
    place = lax.broadcasted_iota(jnp.int32, value.shape, axis)
    return jnp.where(place < left, value, jnp.zeros_like(value))
