"""What the Hopper kernels share: whether the chip is one, and one way to launch a kernel on every version of JAX."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from .tiling import GpuTiles, Index, Ref

THREADS = "wg"  # the axis of warpgroups in a block
ROWS = 64  # that one warpgroup multiplies at once
WHOLE = plgpu.Layout.WGMMA  # of a matrix in the registers of a warpgroup
LINES = plgpu.Layout.WGMMA.reduce(1)  # of one number for each of its rows
SPREAD = plgpu.Layout.WG_STRIDED((2 * ROWS,), vec_size=1)  # of one number for each of the 128 threads
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")  # device kinds: compute capability 9.0
_MULTIPROCESSORS = 132  # of H100 and H200
_INTERPRETED_BLOCKS = 2  # so that tests see a block that goes on to a second tile


def blocks(interpret: Any = None) -> int:
    """How many blocks run at once, one a multiprocessor.

    Args:
        interpret: None to run on the device; else the kernel is interpreted, on any machine.

    Returns:
        The number of the chip's multiprocessors; a small one in the interpreter.

    Raises:
        NotImplementedError: the device is no Hopper GPU.
    """
    if interpret is not None:
        return _INTERPRETED_BLOCKS
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        if abstract.platform not in ("gpu", "cuda") or not _HOPPER.search(abstract.device_kind):
            raise NotImplementedError(f"{abstract.device_kind}: the kernel needs a Hopper GPU (H100, H200)")
        return abstract.num_cores or _MULTIPROCESSORS
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    device = jax.devices(default)[0] if default is None or isinstance(default, str) else default
    if getattr(device, "compute_capability", None) != "9.0":
        raise NotImplementedError(f"{device.device_kind}: the kernel needs a Hopper GPU (H100, H200)")
    return device.core_count


def launch(body: Callable[..., None], *, out: Ref, interpret: Any, **options: Any) -> Callable[..., Any]:
    """A kernel as a function of its operands.

    Args:
        body: takes the references of operands, outputs and scratch memory.
        out: shape and dtype of the output.
        interpret: None, or parameters of the interpreter.
        **options: of `plgpu.kernel`.

    Returns:
        The function.
    """
    semantics = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
    if interpret is not None:
        options["interpret"] = interpret
    return plgpu.kernel(body, out_type=out, compiler_params=semantics, **options)


def tiled(columns: int, dtype: DTypeLike) -> tuple[Any, ...]:
    """How a tile lies in shared memory, for TMA and wgmma alike: 8 rows by up to 128 bytes, swizzled."""
    width = jax.numpy.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(columns * width * 8)
    tiling = plgpu.TilingTransform((8, swizzle // width))  # pyright: ignore[reportAbstractUsage]
    return tiling, plgpu.SwizzleTransform(swizzle)  # pyright: ignore[reportAbstractUsage]


def load(ref: Ref, layout: Any) -> jax.Array:
    """What `ref` holds, from any memory, spread over registers as `layout` says."""
    return _load(ref, layout=layout, optimized=False)


def load_turned(ref: Ref) -> jax.Array:
    """The transpose of the tile in shared memory that `ref` holds, in layout `WHOLE`."""
    ref = ref.transpose((1, 0))
    return load(ref, WHOLE) if _LOADS_ANY_LAYOUT else plgpu.layout_cast(load(ref, _TURNED), WHOLE)


_TURNED = plgpu.Layout.WGMMA_TRANSPOSED
_LOADS_ANY_LAYOUT = jax.__version_info__ >= (0, 12)  # else a transposed tile comes in this one, and is shuffled

# JAX 0.10 takes an index as well.
_load: Callable[..., jax.Array] = plgpu.load
if "idx" in inspect.signature(plgpu.load).parameters:
    _load = partial(_load, idx=())


# float32 weights: Hopper's tensor cores read 32-bit numbers with the contracted axis last and no other way. So each
# warpgroup turns its share of a tile of W round, while the tensor cores work on the tile before it.
# A warpgroup may be one step behind, and its tensor cores one more: the third tile is free without a barrier for it.
TURNS = 3


def turn_memory(tiles: GpuTiles) -> dict[str, Any]:
    """What `Turn` wants of shared memory."""
    shape = TURNS, tiles.columns, tiles.depth
    return {
        "turned": plgpu.SMEM(shape, jnp.float32, transforms=tiled(tiles.depth, jnp.float32)),
        "filled": plgpu.Barrier(num_arrivals=tiles.warpgroups, num_barriers=TURNS),
    }


@dataclass(frozen=True)
class Turn:
    """Tiles of W, `[depth, columns]`, in the order of memory `[columns, depth]`.

    Attributes:
        turned: shared memory of `TURNS` tiles.
        filled: a barrier for each.
        own: number of this warpgroup.
    """

    turned: Ref
    filled: Ref
    own: Index

    def __call__(self, tile: Ref, step: Index, warpgroups: int) -> Any:
        """Reference to `tile` as `[depth, columns]` with `depth` last in memory; `step` counts all tiles of a block."""
        slot = lax.rem(step, TURNS)
        share = self.turned.shape[1] // warpgroups
        for start in range(0, share, ROWS):
            columns = pl.ds(self.own * share + start, ROWS)
            self.turned[slot, columns] = load_turned(tile.at[:, columns])
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.filled.at[slot])
        plgpu.barrier_wait(self.filled.at[slot])
        return self.turned.at[slot].transpose((1, 0))
