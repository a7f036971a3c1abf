"""`rank_update` on TPUs: one product whose operands are made tile by tile from counters."""

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

from .tiling import Ref, Tiles
from .tpu_chip import chip
from .tpu_lowrank_dot import LARGEST_RANK
from .tpu_noise import check_noise, tile

LEAST = Tiles(rows=128, columns=128, depth=16)
PREFERRED = Tiles(rows=512, columns=512, depth=256)  # for any chip: operands are made, not read, and 4 MB hold a tile


@register("rank_update", "mosaic_tpu", platforms=("tpu",))
def rank_update_tpu(
    weights: jax.Array,
    left: Factor,
    right: Factor,
    *,
    accumulator: jax.Array | None = None,
    tiles: Tiles | None = None,
    interpret: Any = False,
) -> jax.Array:
    """`accumulator + Σ_u weights[u]·A_u·B_uᵀ`, `[m, n]` float32, for keys `[U, 2]`."""
    left, right = need_seeds(left, right, LARGEST_RANK)
    check_supported(weights, left, accumulator)
    check_noise(left, right)
    tiles = (tiles or PREFERRED).fitted(left.size, right.size, weights.shape[0], least=LEAST)
    units = weights.shape[0]
    grid = pl.cdiv(left.size, tiles.rows), pl.cdiv(right.size, tiles.columns), pl.cdiv(units, tiles.depth)
    per_unit = [pl.BlockSpec((tiles.depth, width), lambda i, j, u: (u, 0)) for width in (1, 2, 2)]
    whole = pl.BlockSpec((tiles.rows, tiles.columns), lambda i, j, u: (i, j))
    start = [] if accumulator is None else [accumulator.astype(jnp.float32)]
    return pl.pallas_call(
        partial(_kernel, left=left, right=right, units=units, tiles=tiles),
        grid=grid,
        in_specs=[*per_unit, *[whole] * len(start)],
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((left.size, right.size), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=chip().limit
        ),
        interpret=interpret,
        name="rank_update",
    )(weights.astype(jnp.float32)[:, None], left.key, right.key, *start)


def check_supported(weights: jax.Array, left: Seeded, accumulator: jax.Array | None) -> None:
    """Raises NotImplementedError where the kernel does not apply."""
    if jnp.float64 in (weights.dtype, left.dtype, getattr(accumulator, "dtype", None)):
        raise NotImplementedError("float64")
    if not weights.shape[0]:
        raise NotImplementedError("no members")


def _kernel(weights: Ref, left_keys: Ref, right_keys: Ref, *refs: Ref, **static: Any) -> None:
    *start, out = refs
    _add_tile(weights, left_keys, right_keys, start, out, **static)


def _add_tile(
    weights: Ref,
    left_keys: Ref,
    right_keys: Ref,
    start: list[Ref],
    out: Ref,
    *,
    left: Seeded,
    right: Seeded,
    units: int,
    tiles: Tiles,
) -> None:
    i, j, u = (pl.program_id(axis) for axis in range(3))

    @pl.when(u == 0)
    def _() -> None:
        out[...] = start[0][...] if start else jnp.zeros_like(out)

    # Beyond the last unit weights and keys may be anything: the weight is zero there, and the noise is finite.
    unit = u * tiles.depth + lax.broadcasted_iota(jnp.int32, weights.shape, 0)
    weight = jnp.where(unit < units, weights[...], 0.0)
    rows = tile(left_keys[...], i * tiles.rows, tiles.rows, left)
    columns = tile(right_keys[...], j * tiles.columns, tiles.columns, right)
    for a, b in zip(rows, columns, strict=True):
        out[...] += _product(weight * a, b, left.dtype)


def _product(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`aᵀ·b`; half precision noise is summed as bfloat16 products, float32 noise exactly."""
    precision = lax.Precision.HIGHEST
    if jnp.dtype(dtype).itemsize == 2:
        a, b, precision = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), None
    dims = (((0,), (0,)), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
