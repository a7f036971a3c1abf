"""Rules that only move axes: transpose, reshape, squeeze, broadcast, rev."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jax import lax

from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.fallback import Unsupported
from eggroll.engine.interpreter import Interpreter, map_terms
from eggroll.engine.lowrank import Factor, Term


def transpose(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Axis `a` moves to where the permutation puts it."""
    (value,) = args
    new_axis = {old: new for new, old in enumerate(eqn.params["permutation"])}
    return map_terms(value, ctx.base(eqn, args), lambda t: t.map(lambda f: f.relabel(new_axis)))


def squeeze(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Axes of size one go; the others close ranks."""
    (value,) = args
    gone = eqn.params["dimensions"]
    kept = [a for a in range(len(value.shape)) if a not in gone]
    new_axis = {old: new for new, old in enumerate(kept)}

    def change(f: Factor) -> Factor:
        drop = tuple(f.position(a) for a in gone if a in f.axes)
        axes = tuple(new_axis[a] for a in f.axes if a not in gone)
        return f.with_array(lax.squeeze(f.array, drop), axes=axes)

    return map_terms(value, ctx.base(eqn, args), lambda t: t.map(change))


def broadcast_in_dim(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """New axes, and axes grown from size one, belong to no factor."""
    value, *dynamic = args
    if dynamic or eqn.params.get("sharding") is not None:
        raise Unsupported("broadcast with a dynamic shape or an explicit sharding")
    out_axis = dict(enumerate(eqn.params["broadcast_dimensions"]))
    sizes = value.shape
    return map_terms(value, ctx.base(eqn, args), lambda t: t.map(lambda f: f.squeeze(sizes).relabel(out_axis)))


def rev(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Reverses the owned axes of each factor."""
    (value,) = args
    dims = eqn.params["dimensions"]

    def change(f: Factor) -> Factor:
        own = tuple(f.position(a) for a in dims if a in f.axes)
        return f.with_array(lax.rev(f.array, own))

    return map_terms(value, ctx.base(eqn, args), lambda t: t.map(change))


def reshape(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Splits and merges axes of one factor; merging axes of two factors has no factored form."""
    value, *dynamic = args
    if dynamic or eqn.params.get("dimensions") is not None or eqn.params.get("sharding") is not None:
        raise Unsupported("reshape with a dynamic shape, a dimension order or an explicit sharding")
    groups = axis_groups(value.shape, eqn.params["new_sizes"])
    fuse = ctx.observer is not None
    sizes, new_sizes = value.shape, eqn.params["new_sizes"]

    def change(term: Term) -> Term:
        term = term.map(lambda f: f.squeeze(sizes))
        for old, _ in groups:
            term = _own_whole_group(term, old, sizes, fuse)
        return term.map(lambda f: _regroup(f, groups, new_sizes))

    changed = [change(t) for t in value.terms]  # before the base is bound: Unsupported leaves no dead equation
    return [replace(value, base=ctx.base(eqn, args), terms=tuple(changed))]


def axis_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Matches runs of old axes with runs of new axes of equal size, as fine as possible; size-one axes are left out."""
    if math.prod(old) == 0:
        raise Unsupported("reshape of an empty array")
    old_axes = [a for a, n in enumerate(old) if n != 1]
    new_axes = [a for a, n in enumerate(new) if n != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while old_axes:
        left, right = [old_axes.pop(0)], [new_axes.pop(0)]
        while (m := math.prod(old[a] for a in left)) != (n := math.prod(new[a] for a in right)):
            if m < n:
                left.append(old_axes.pop(0))
            else:
                right.append(new_axes.pop(0))
        groups.append((left, right))
    return groups


def _own_whole_group(term: Term, group: Sequence[int], sizes: Sequence[int], fuse: bool) -> Term:
    """Makes every factor own all or none of a group of axes that will be merged."""
    touching = [f for f in term.factors if set(group) & set(f.axes)]
    if all(set(group) <= set(f.axes) for f in touching):
        return term
    if len(touching) == 1:
        whole = touching[0]
        for axis in set(group) - set(whole.axes):
            whole = whole.expand(axis, sizes[axis])
        return replace(term, factors=tuple(whole if f is touching[0] else f for f in term.factors))
    if not fuse:
        raise Unsupported("reshape merges axes of both factors")
    others = tuple(f for f in term.factors if not set(group) & set(f.axes))
    return replace(term, factors=(_fuse(touching, group, sizes), *others))


def _fuse(factors: Sequence[Factor], group: Sequence[int], sizes: Sequence[int]) -> Factor:
    """One probe for several: only shapes matter in discovery, so the arrays are not multiplied."""
    axes = tuple(sorted(set(group) | {a for f in factors for a in f.axes}))
    shape = (*(sizes[a] for a in axes), factors[0].array.shape[-1])
    array = lax.full(shape, 0, factors[0].array.dtype)
    return Factor(array, axes, frozenset().union(*(f.origin for f in factors)))


def _regroup(f: Factor, groups: Sequence[tuple[list[int], list[int]]], new_sizes: Sequence[int]) -> Factor:
    """Reshapes a factor that owns whole groups only."""
    axes = tuple(a for old, new in groups if set(old) <= set(f.axes) for a in new)
    shape = (*(new_sizes[a] for a in axes), f.array.shape[-1])
    return f.with_array(lax.reshape(f.array, shape), axes=axes)


RULES = {
    "transpose": transpose,
    "squeeze": squeeze,
    "broadcast_in_dim": broadcast_in_dim,
    "rev": rev,
    "reshape": reshape,
}
