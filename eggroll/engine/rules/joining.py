"""Rules that put values side by side: concatenate and stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax

from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter
from eggroll.engine.lowrank import Factor, Perturbed, Term


def concatenate(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Joins factor by factor along a batch axis; else each part becomes a term that is zero outside its range."""
    return [_join(ctx, eqn, list(args), eqn.params["dimension"])]


def stack(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """A concatenation along a new axis of size one."""
    axis = eqn.params["axis"]
    return [_join(ctx, eqn, [_with_new_axis(a, axis) for a in args], axis, original=args)]


def _with_new_axis(value: Any, axis: int) -> Any:
    if not isinstance(value, Perturbed):
        return jnp.expand_dims(value, axis)
    shift = {a: a + (a >= axis) for a in range(len(value.shape))}
    return value.map(jnp.expand_dims(value.base, axis), lambda t: t.map(lambda f: f.relabel(shift)))


def _join(
    ctx: Interpreter, eqn: JaxprEqn, parts: list[Any], axis: int, original: Sequence[Any] | None = None
) -> Perturbed:
    base = ctx.base(eqn, parts if original is None else original)
    whole = _factorwise(parts, axis)
    if whole is not None:
        return Perturbed(base, (whole,))
    plain = not all(isinstance(p, Perturbed) for p in parts)
    terms: list[Term] = []
    start = 0
    for part in parts:
        size = part.shape[axis]
        if isinstance(part, Perturbed):
            pads = (start, base.shape[axis] - start - size)
            padded = [_padded(t, axis, size, pads) for t in part.terms]
            terms += [replace(t, added=t.added or plain) for t in padded]
        start += size
    return Perturbed(base, tuple(terms))


def _factorwise(parts: Sequence[Any], axis: int) -> Term | None:
    """One term for all parts, where every part has one, of the same rank, with `axis` a batch axis of its factors."""
    if not all(isinstance(p, Perturbed) and len(p.terms) == 1 for p in parts):
        return None
    terms = [p.terms[0].without_scale() for p in parts]
    layout = [f.axes for f in terms[0].factors]
    if len({t.source.path for t in terms}) > 1 or any(axis not in axes for axes in layout):
        return None
    if any([f.axes for f in t.factors] != layout or t.rank != terms[0].rank for t in terms):
        return None
    joined = []
    for same in zip(*(t.factors for t in terms), strict=True):
        array = lax.concatenate([f.array for f in same], same[0].position(axis))
        joined.append(same[0].with_array(array))
    return replace(terms[0], factors=tuple(joined))


def _padded(term: Term, axis: int, size: int, pads: tuple[int, int]) -> Term:
    """Zero outside the part's range, in every factor that owns the axis (at least one)."""
    if not term.owners(axis):
        first, *rest = term.factors
        term = replace(term, factors=(first.expand(axis, size), *rest))

    def pad(f: Factor) -> Factor:
        if axis not in f.axes:
            return f
        widths = [(0, 0, 0)] * f.array.ndim
        widths[f.position(axis)] = (*pads, 0)
        return f.with_array(lax.pad(f.array, jnp.zeros((), f.array.dtype), widths))

    return term.map(pad)


RULES = {"concatenate": concatenate, "stack": stack}
