"""Float32 master copies of parameters of lower precision: a bfloat16 weight would lose an update of 1e-5."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.lowrank import accumulator_dtype


def is_low(leaf: Any) -> bool:
    """Whether a parameter has a master copy."""
    return jnp.issubdtype(leaf.dtype, jnp.floating) and accumulator_dtype(leaf.dtype) != leaf.dtype


def master_copies(params: Any) -> tuple[jax.Array, ...]:
    """Float32 copies of the leaves of lower precision, in order."""
    return tuple(p.astype(jnp.float32) for p in jax.tree.leaves(params) if is_low(p))


def full(params: Any, master: tuple[jax.Array, ...]) -> Any:
    """`params` with the master copies in place of the leaves of lower precision."""
    copies = iter(master)
    return jax.tree.map(lambda p: next(copies) if is_low(p) else p, params)


def rounded(moved: Any, like: Any) -> tuple[Any, tuple[jax.Array, ...]]:
    """Updated full-precision parameters, back to the dtypes of `like`, and their new master copies."""
    params = jax.tree.map(lambda m, p: m.astype(p.dtype), moved, like)
    pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(like), strict=True)
    return params, tuple(m for m, p in pairs if is_low(p))
