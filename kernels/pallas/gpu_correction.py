"""What is added to 64 rows of a tile of `x·W`, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .gpu_noise import GROUP, Noise, across, times
from .hopper import LINES, ROWS, WHOLE, load
from .tiling import Index, Ref


@dataclass(frozen=True)
class Correction:
    """`scale·thin·Bᵀ` of a block of 64 rows.

    Attributes:
        noise: B from the tile's first column on.
        thin: reference to parts of `x·A`, `[S, rank, rows]`; None where `gather` makes it.
        scales: `[64]`.
        scaled: shared memory for their product, `[rank, 64]`.
        block: number of the block.
    """

    noise: Noise
    thin: Ref
    scales: jax.Array
    scaled: Ref
    block: Index

    def prepare(self) -> None:
        """Fetches what `finish` wants, before it is in a hurry."""
        self.noise.prepare()
        own = pl.ds(self.block * ROWS, ROWS)

        @pl.loop(0, self.scaled.shape[0])
        def _(rank: Index) -> None:
            zeros = plgpu.layout_cast(jnp.zeros(ROWS, jnp.float32), LINES)
            thin = [] if self.thin is None else [self.thin.at[s, rank, own] for s in range(self.thin.shape[0])]
            parts = [load(part, LINES) for part in thin]
            self.scaled[rank] = sum(parts, zeros) * self.scales

    def gather(self, left: Noise, x: Ref) -> None:
        """Instead of fetching `thin`: adds the product of a tile of x, `[64, GROUP]`, with its part of A."""
        left.prepare()
        value = load(x, WHOLE).astype(jnp.float32)
        plgpu.commit_smem()  # all threads have read it: the next copy may overwrite it
        turns, _ = left.turns()
        for rank, bits in enumerate(bits for turn in range(turns) for bits in left.bits(0, turn)):
            product = jnp.sum(times(value, bits, left.factor), axis=1) * self.scales
            self.scaled[rank] = load(self.scaled.at[rank], LINES) + product

    def finish(self, total: jax.Array, out: Ref, staged: Ref) -> None:
        """Adds the correction to `[64, columns]` and writes it to `out`."""
        own = pl.ds(self.block * ROWS, ROWS)
        stage = staged.shape[-1]
        for start in range(0, total.shape[1], GROUP):
            value = self._corrected(total[:, start : start + GROUP], start).astype(out.dtype)
            for at in range(0, GROUP, stage):
                slot = staged.at[(start + at) // stage % 2]
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                slot[...] = value[:, at : at + stage]
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(slot, out.at[own, pl.ds(self.noise.first + start + at, stage)])

    def _corrected(self, value: jax.Array, start: int) -> jax.Array:
        turns, each = self.noise.turns()

        def one_turn(turn: Index, value: jax.Array) -> jax.Array:
            for j, bits in enumerate(self.noise.bits(start, turn)):
                scaled = load(self.scaled.at[turn * each + j], LINES)
                value += times(across(scaled), bits, self.noise.factor)
            return value

        return one_turn(0, value) if turns == 1 else lax.fori_loop(0, turns, one_turn, value)
