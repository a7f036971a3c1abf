"""The kernels as the engine calls them: written for one member, all members under `jax.vmap`."""

from __future__ import annotations

from typing import Any

import jax

from eggroll.kernels import lowrank_dot


def population_dot(x: jax.Array, w: jax.Array, left: Any, right: Any, scale: jax.Array, **options: Any) -> jax.Array:
    """Every member's `lowrank_dot`: units under `vmap`, in them the members that share a unit's factors.

    Args:
        x: `[M, R, K]`; members of a unit are neighbours.
        w: `[K, N]`.
        left: `[U, K, r]`, or `Seeded` with keys `[U, 2]`.
        right: `[U, N, r]`, likewise.
        scale: `[M]`.
        **options: of `lowrank_dot`, such as `implementation`.

    Returns:
        `[M, R, N]`.
    """

    def member(left: Any, right: Any, x: jax.Array, scale: jax.Array) -> jax.Array:
        return lowrank_dot(x, w, left, right, scale=scale, **options)

    units = jax.tree.leaves(left)[0].shape[0]
    own = [a.reshape(units, -1, *a.shape[1:]) for a in (x, scale)]
    out = jax.vmap(jax.vmap(member, in_axes=(None, None, 0, 0)))(left, right, *own)
    return out.reshape(x.shape[0], *out.shape[2:])
