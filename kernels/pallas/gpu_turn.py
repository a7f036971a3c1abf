"""float32 weights for Hopper's tensor cores, which read 32-bit numbers with the contracted axis last and no other way.

Each warpgroup turns its share of a tile of W round, while the tensor cores work on the tile before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .hopper import ROWS, load_turned, tiled
from .tiling import GpuTiles

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

    turned: Any
    filled: Any
    own: Any

    def __call__(self, tile: Any, step: Any, warpgroups: int) -> Any:
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
