"""Rules that pick parts (slice, split, unstack, gather) and that put values side by side (concatenate, stack)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter, Unsupported
from eggroll.engine.lowrank import Array, Factor, Perturbed, Term


def slice_(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Slices each factor along the axes it owns."""
    (value,) = args
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    stride = eqn.params["strides"] or (1,) * len(start)

    def pick(f: Factor) -> Factor:
        return f.with_array(f.array[tuple(slice(start[a], limit[a], stride[a]) for a in f.axes)])

    return [value.map(ctx.base(eqn, args), lambda t: t.map(pick))]


def split(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """One slice per section."""
    (value,) = args
    axis, sizes = eqn.params["axis"], [int(n) for n in eqn.params["sizes"]]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def part(start: int, size: int, f: Factor) -> Factor:
        if axis not in f.axes:
            return f
        array = lax.slice_in_dim(f.array, start, start + size, axis=f.position(axis))
        return f.with_array(array)

    cuts = [partial(part, start, size) for start, size in zip(starts, sizes, strict=True)]
    bases = jax_compat.bind(eqn, [value.base])
    return [value.map(base, lambda t, cut=cut: t.map(cut)) for base, cut in zip(bases, cuts, strict=True)]


def unstack(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """One part for each position along an axis, which goes."""
    (value,) = args
    axis = eqn.params["axis"]

    def part(i: int, f: Factor) -> Factor:
        array = lax.index_in_dim(f.array, i, f.position(axis), keepdims=False) if axis in f.axes else f.array
        return f.with_array(array, axes=tuple(a - (a > axis) for a in f.axes if a != axis))

    bases = jax_compat.bind(eqn, [value.base])
    return [value.map(base, partial(Term.map, change=partial(part, i))) for i, base in enumerate(bases)]


def dynamic_slice(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Slices each factor at the start indices of the axes it owns; they clamp as the base's do."""
    value, *starts = args
    if not isinstance(value, Perturbed) or any(isinstance(s, Perturbed) for s in starts):
        raise Unsupported("a slice at a perturbed position")
    sizes = eqn.params["slice_sizes"]
    starts = starts[: len(sizes)]
    rows = [a for a, n in enumerate(sizes) if n == 1 and value.shape[a] != 1]

    def pick(f: Factor) -> Factor:
        array = f.array
        for i, a in enumerate(f.axes):
            if sizes[a] != value.shape[a]:
                array = lax.dynamic_slice_in_dim(array, starts[a], sizes[a], axis=i)
        return f.with_array(array)

    out = value.map(ctx.base(eqn, args), lambda t: _looked_up(t, rows, t.map(pick)))
    return [out.dense() if ctx.observer is None and _is_activation(value, rows, sizes) else out]


def _is_activation(value: Perturbed, indexed: Sequence[int], sizes: Sequence[int]) -> bool:
    """True if a lookup leaves nothing but numbers of one factor and did not touch another.

    So an embedding: what comes out is, row by row, no larger than the factor that was not looked up, and the network
    goes on to use it elementwise.
    """
    for term in value.terms:
        found = [f for f in term.factors if set(indexed) & set(f.axes)]
        spent = any(all(sizes[a] == 1 for a in f.axes) for f in found)
        if spent and len(found) < len(term.factors):
            return True
    return False


def _looked_up(before: Term, axes: Sequence[int], after: Term) -> Term:
    """Notes for discovery which parameter axes were indexed."""
    found = [f.origin for f in before.factors if set(axes) & set(f.axes)]
    return replace(after, looked_up=before.looked_up.union(*found))


def gather(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Looks each factor up at its own index columns.

    Rows out of bounds get the fill value from the base and zero from the factors. Embedded rows are activations, so
    they are made dense here, without complaint; so they are in `dynamic_slice`.
    """
    value, indices = args
    if not isinstance(value, Perturbed) or isinstance(indices, Perturbed):
        raise Unsupported("a lookup at perturbed positions")
    numbers = eqn.params["dimension_numbers"]
    if numbers.operand_batching_dims:
        raise Unsupported("a lookup with batching dimensions")
    indexed = _indexed(eqn, value.shape)
    if any(not t.owners(a) for t in value.terms for a in indexed):
        raise Unsupported("a lookup along an axis that belongs to no factor")
    lookup = _Lookup(eqn, indices, value, indexed)
    out = value.map(ctx.base(eqn, args), lambda t: _looked_up(t, indexed, t.map(lookup.factor)))
    if value.scale is not None:
        out = replace(out, scale=value.scale.map(partial(lookup.factor, outside=1)))
    activation = _is_activation(value, indexed, eqn.params["slice_sizes"])
    return [out.dense() if ctx.observer is None and activation else out]


def _indexed(eqn: JaxprEqn, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes that the indices choose from; a window as large as its axis leaves no choice once it is clamped."""
    axes, sizes = eqn.params["dimension_numbers"].start_index_map, eqn.params["slice_sizes"]
    if eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        return axes
    return tuple(a for a in axes if sizes[a] != shape[a])


@dataclass(frozen=True)
class _Lookup:
    eqn: JaxprEqn
    indices: Array
    operand: Perturbed
    indexed_axes: Sequence[int]

    @property
    def _numbers(self) -> lax.GatherDimensionNumbers:
        return self.eqn.params["dimension_numbers"]

    def _out_axes(self) -> tuple[list[int], dict[int, int]]:
        """Output axes of the index batch, and of every operand axis that stays."""
        offsets = self._numbers.offset_dims
        out_ndim = self.indices.ndim - 1 + len(offsets)
        batch = [i for i in range(out_ndim) if i not in offsets]
        kept = [a for a in range(len(self.operand.shape)) if a not in self._numbers.collapsed_slice_dims]
        return batch, dict(zip(kept, offsets, strict=True))

    def factor(self, f: Factor, outside: int = 0) -> Factor:
        """The factor at the given positions, over the output axes it owns; `outside` of its bounds."""
        sizes = self.eqn.params["slice_sizes"]
        batch, stays = self._out_axes()
        indexed = [a for a in self.indexed_axes if a in f.axes]
        window = [stays[a] for a in f.axes if a in stays]
        if not indexed:  # such axes start at zero
            array = f.array[tuple(slice(0, sizes[a]) if a in stays else 0 for a in f.axes)]
            return f.with_array(array, axes=tuple(window))
        array = self._gather(
            f, indexed, outside
        )  # [window..., rank, batch...] would be as right; the batch comes first here
        axes = [*batch, *window]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        return f.with_array(jnp.transpose(array, (*order, len(order))), axes=tuple(sorted(axes)))

    def _gather(self, f: Factor, indexed: list[int], outside: int) -> Array:
        """`[*batch, *window, rank]`."""
        columns = [self._numbers.start_index_map.index(a) for a in indexed]
        collapsed = [f.position(a) for a in self._numbers.collapsed_slice_dims if a in f.axes]
        n_batch = self.indices.ndim - 1
        n_window = len(f.axes) + 1 - len(collapsed)
        numbers = lax.GatherDimensionNumbers(
            offset_dims=tuple(range(n_batch, n_batch + n_window)),
            collapsed_slice_dims=tuple(sorted(collapsed)),
            start_index_map=tuple(f.position(a) for a in indexed),
        )
        sizes = tuple(self.eqn.params["slice_sizes"][a] for a in f.axes)
        return lax.gather(
            f.array,
            self.indices[..., jnp.asarray(columns)] if len(columns) != self.indices.shape[-1] else self.indices,
            numbers,
            (*sizes, f.array.shape[-1]),
            mode=self.eqn.params["mode"],
            unique_indices=False,
            indices_are_sorted=False,
            fill_value=outside,
        )


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


RULES = {
    "slice": slice_,
    "split": split,
    "unstack": unstack,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
    "concatenate": concatenate,
    "stack": stack,
}
