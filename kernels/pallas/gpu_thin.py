"""`x·A` on Hopper GPUs: each row of `x` is multiplied by numbers that stay in registers.

A number costs 3 or 4 instructions beside its share of a word, so that reading `x` takes about as long.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from eggroll.ops.seeded import Seeded

from .gpu_noise import GROUP, Noise, scratch, times
from .hopper import LINES, ROWS, WHOLE, launch, load, tiled
from .tiling import Index, Ref

STEPS = 4  # of them that are on their way
LARGEST_SPLIT = 16


def thin_product(x: jax.Array, table: jax.Array, factor: Seeded, count: int, interpret: Any) -> jax.Array:
    """Parts of `x·A`.

    Args:
        x: `[P, K]`.
        table: `lines` of its rows, `[6, blocks, 128]`.
        factor: A; its key is not used.
        count: blocks that run at once.
        interpret: None, or parameters of the interpreter.

    Returns:
        `[S, rank, blocks·64]` float32; the product is the sum over S.
    """
    rows = table.shape[1]
    steps = pl.cdiv(x.shape[1], GROUP)
    split = max(1, min(LARGEST_SPLIT, 2 * count // rows, steps))
    split = pl.cdiv(steps, pl.cdiv(steps, split))  # no part is empty
    kernel = launch(
        partial(_kernel, factor=factor, steps=pl.cdiv(steps, split)),
        out=jax.ShapeDtypeStruct((split, factor.rank, rows * ROWS), jnp.float32),
        grid=(rows, split),
        grid_names=("rows", "part"),
        interpret=interpret,
        scratch_types=scratch(GROUP, factor),
    )
    return kernel(x, table)


def _kernel(x: Ref, table: Ref, out: Ref, *words: Ref, factor: Seeded, steps: int) -> None:
    rows, part = lax.axis_index("rows"), lax.axis_index("part")

    def add(index: tuple[Index, ...], tile: Ref, totals: Any) -> Any:
        first = (part * steps + index[0]) * GROUP
        noise = Noise(factor, table.at[:2, rows], words[0] if words else None, first)
        noise.prepare()
        value = load(tile, WHOLE).astype(jnp.float32)
        plgpu.commit_smem()  # all threads have read it: the next copy may overwrite it
        products = []
        for turn in range(noise.turns()[0]):
            products += [jnp.sum(times(value, bits, factor), axis=1) for bits in noise.bits(0, turn)]
        return tuple(total + product for total, product in zip(totals, products, strict=True))

    zeros = plgpu.layout_cast(jnp.zeros(ROWS, jnp.float32), LINES)
    spec = plgpu.BlockSpec((ROWS, GROUP), lambda k: (rows, part * steps + k), transforms=tiled(GROUP, x.dtype))
    totals = plgpu.emit_pipeline(
        add, grid=(steps,), in_specs=[spec], max_concurrent_steps=STEPS, init_carry=(zeros,) * factor.rank
    )(x)
    for j, total in enumerate(totals):
        out[part, j, pl.ds(rows * ROWS, ROWS)] = total
