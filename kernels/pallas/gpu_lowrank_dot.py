"""`lowrank_dot` on Hopper GPUs: `x·A` in one pass over `x`, its product with `Bᵀ` when a tile of `x·W` is done.

TMA fills what lies beyond an array's end with zeros and leaves it alone when it stores: no size need be a multiple
of a tile. Sizes have to be multiples of 8 rows and 64 columns, as memory is swizzled; arrays that are not are padded.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from eggroll.ops.registry import register
from eggroll.ops.seeded import Factor, Seeded, need_seeds

from .gpu_noise import check_noise, lines
from .gpu_product import product
from .gpu_thin import thin_product
from .hopper import blocks
from .tiling import GpuTiles, round_up

LARGEST_RANK = 16
SWIZZLED = 8, 64  # rows and columns of bfloat16 numbers that lie together


@register("lowrank_dot", "mosaic_gpu", platforms=("gpu",))
def lowrank_dot_gpu(
    x: jax.Array,
    w: jax.Array,
    left: Factor,
    right: Factor,
    *,
    scale: jax.Array | None = None,
    precision: lax.PrecisionLike = None,
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
    tiles = tiles or GpuTiles.for_dot(members * rows, columns, w.dtype, left.rank)
    x = _padded(x.reshape(members * rows, depth), tiles.rows, tiles.depth)
    w = _padded(w, x.shape[1], tiles.columns)
    size = round_up(members * rows, tiles.rows * tiles.cluster)
    each = members // left.key.shape[0] * rows
    left_keys, right_keys = (jnp.repeat(f.key, each, axis=0) for f in (left, right))
    scale = jnp.ones(members, jnp.float32) if scale is None else scale
    table = lines(left_keys, right_keys, jnp.repeat(scale, rows), size)
    thin = [] if tiles.within else [thin_product(x, table, left, count, interpret)]
    out = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), out_dtype)
    out = product((x, w, table, *thin), (left, right), tiles, out, count, interpret)
    return out[: members * rows, :columns].reshape(members, rows, columns)


def check_supported(
    x: jax.Array, w: jax.Array, left: Seeded, right: Seeded, precision: lax.PrecisionLike, preferred: DTypeLike | None
) -> None:
    """Raises NotImplementedError where the kernels do not apply."""
    if x.dtype != w.dtype or x.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"x of {x.dtype} and w of {w.dtype}: both bfloat16, or both float32")
    if precision is not None and not isinstance(precision, lax.Precision):
        raise NotImplementedError(f"precision {precision}: None or a jax.lax.Precision")
    if x.dtype == jnp.float32 and precision == lax.Precision.HIGHEST:  # those are all alike for bfloat16
        raise NotImplementedError("float32 at highest precision: Hopper's tensor cores read 19 of its bits (tf32)")
    if preferred is not None and jnp.dtype(preferred) not in (x.dtype, jnp.float32):
        raise NotImplementedError(f"preferred_element_type {preferred}: that of x, or float32")
    if 0 in (*x.shape, *w.shape):
        raise NotImplementedError("arrays of size zero")
    check_noise(left, right)


def _padded(a: jax.Array, rows: int, columns: int) -> jax.Array:
    """At least one tile, and sizes that TMA can swizzle; most arrays are returned as they are."""
    want = [max(round_up(n, unit), least) for n, unit, least in zip(a.shape, SWIZZLED, (rows, columns), strict=True)]
    return jnp.pad(a, [(0, n - had) for n, had in zip(want, a.shape, strict=True)]) if want != [*a.shape] else a
