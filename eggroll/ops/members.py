"""The whole population in one call: what `jax.vmap` over members does to an operation on seeded factors.

`vmap` of a Pallas kernel would run it once a member. Here each `vmap` folds its axis into the operands instead, and the
operation is called again; innermost, the implementation sees `x [M, R, K]`, keys `[U, 2]` of `U` units and the scale
of each member `[M]`. Members `u·M/U` to `(u+1)·M/U − 1` share the factors of unit `u`: antithetic pairs, for one.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from eggroll.ops.registry import REFERENCE, dispatch
from eggroll.ops.seeded import Seeded


class Call(NamedTuple):
    """What stays the same while axes are folded in; hashable, so that equal calls share their traces."""

    left: Seeded
    right: Seeded
    precision: Any
    preferred: Any
    implementation: str | None


def seeded_dot(
    x: jax.Array, w: jax.Array, left: Seeded, right: Seeded, scale: jax.Array | None, **options: Any
) -> jax.Array:
    """`x·w + scale·(x·A)·Bᵀ` of one member: `x [..., K]`, keys `[2]`, a scalar scale."""
    scale = jnp.ones((), jnp.float32) if scale is None else scale.astype(jnp.float32)
    call = Call(replace(left, key=None), replace(right, key=None), **options)
    rows = x.reshape(1, -1, x.shape[-1])
    out = _dot(call)(rows, w, left.key[None], right.key[None], scale[None])
    return out.reshape(*x.shape[:-1], w.shape[1])


@functools.cache
def _dot(call: Call) -> Any:
    """`f(x [M, R, K], w, left keys [U, 2], right keys [U, 2], scale [M]) -> [M, R, N]`."""

    @custom_vmap
    def dot(x: jax.Array, w: jax.Array, left: jax.Array, right: jax.Array, scale: jax.Array) -> jax.Array:
        return _run(call, x, w, left, right, scale)

    @dot.def_vmap
    def rule(size: int, batched: list[bool], x: Any, w: Any, left: Any, right: Any, scale: Any) -> tuple[Any, bool]:
        of_x, of_w, of_left, of_right, of_scale = batched
        units = left.shape[-2]
        keys = of_left or of_right
        if of_w or not of_x or (keys and not (of_left and of_right)):
            # Nothing that the members could share, or a product that they share altogether.
            if call.implementation not in (None, REFERENCE):
                raise NotImplementedError(
                    f"{call.implementation}: members share x, or have a w each; use implementation=None"
                )
            reference = functools.partial(_run, call._replace(implementation=REFERENCE))
            return jax.vmap(reference, in_axes=[0 if b else None for b in batched], axis_size=size)(
                x, w, left, right, scale
            ), True
        members, rows = x.shape[1:3]
        if keys:  # an axis of units, outside of those that there are
            scale = scale if of_scale else jnp.broadcast_to(scale, (size, members))
            flat = [a.reshape(-1, *a.shape[2:]) for a in (x, left, right, scale)]
            out = _dot(call)(flat[0], w, *flat[1:])
            return out.reshape(size, members, rows, -1), True
        if of_scale:  # an axis of members inside of every unit
            inside = [_inside(a, units) for a in (x, scale)]
            out = _dot(call)(inside[0], w, left, right, inside[1])
            return _outside(out, size, units), True
        out = _dot(call)(jnp.moveaxis(x, 0, 1).reshape(members, size * rows, -1), w, left, right, scale)
        return jnp.moveaxis(out.reshape(members, size, rows, -1), 1, 0), True

    return dot


def _inside(a: jax.Array, units: int) -> jax.Array:
    """`[size, U·S, ...]` → `[U·size·S, ...]`."""
    a = a.reshape(a.shape[0], units, -1, *a.shape[2:])
    return jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[3:])


def _outside(a: jax.Array, size: int, units: int) -> jax.Array:
    """`[U·size·S, ...]` → `[size, U·S, ...]`."""
    a = jnp.moveaxis(a.reshape(units, size, -1, *a.shape[1:]), 1, 0)
    return a.reshape(size, -1, *a.shape[3:])


def _run(call: Call, x: Any, w: Any, left: Any, right: Any, scale: Any) -> jax.Array:
    factors = replace(call.left, key=left), replace(call.right, key=right)
    options = {"precision": call.precision, "preferred_element_type": call.preferred}
    return dispatch("lowrank_dot", x, w, *factors, scale=scale, implementation=call.implementation, **options)
