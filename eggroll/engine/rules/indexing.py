"""Rules that pick parts: slice, split, unstack, gather."""

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
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term
from eggroll.engine.rules.scaling import owning


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
    activation = -id(eqn) not in ctx.weights.multiplied and _is_activation(value, rows, sizes)
    return [out.dense() if ctx.observer is None and activation else out]


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

    Rows out of bounds get the fill value from the base and zero from the factors. Rows are held for
    activations, and made dense here, without complaint, unless a product uses them as weights; so in `dynamic_slice`.
    """
    value, indices = args
    if not isinstance(value, Perturbed) or isinstance(indices, Perturbed):
        raise Unsupported("a lookup at perturbed positions")
    own, (eqn, indices) = eqn, _shared(ctx, eqn, indices)
    indexed = _indexed(eqn, value.shape)
    for a in indexed:
        value = value.map(value.base, partial(owning, axis=a, size=value.shape[a]))
    lookup = _Lookup(eqn, indices, value, indexed)
    out = value.map(ctx.base(eqn, [value, indices]), lambda t: _looked_up(t, indexed, t.map(lookup.factor)))
    if value.scale is not None:
        out = replace(out, scale=value.scale.map(partial(lookup.factor, outside=1)))
    activation = -id(own) not in ctx.weights.multiplied and _is_activation(value, indexed, eqn.params["slice_sizes"])
    return [out.dense() if ctx.observer is None and activation else out]


def _shared(ctx: Interpreter, eqn: JaxprEqn, indices: Any) -> tuple[JaxprEqn, Any]:
    """A lookup with batching dimensions (`take_along_axis`), along which the indices do not vary, as one without."""
    numbers = eqn.params["dimension_numbers"]
    paired = numbers.start_indices_batching_dims
    if not paired:
        return eqn, indices
    if any(a in ctx.varying(indices) and indices.shape[a] != 1 for a in paired):
        raise Unsupported("a lookup whose positions vary along axes that are not looked up")
    out_ndim = indices.ndim - 1 + len(numbers.offset_dims)
    batch = [i for i in range(out_ndim) if i not in numbers.offset_dims]
    window = [a for a in range(len(eqn.params["slice_sizes"])) if a not in numbers.collapsed_slice_dims]
    now = [batch[a] for a in paired]
    stays = [a for a in window if a not in numbers.operand_batching_dims]
    places = dict(zip(stays, numbers.offset_dims, strict=True)) | dict(
        zip(numbers.operand_batching_dims, now, strict=True)
    )
    offsets = [places[a] for a in window]
    if offsets != sorted(offsets):
        raise Unsupported("a lookup that moves the axes along which its positions do not vary")
    sizes = list(eqn.params["slice_sizes"])
    for operand_axis, a in zip(numbers.operand_batching_dims, paired, strict=True):
        sizes[operand_axis] = indices.shape[a]
    plain = lax.GatherDimensionNumbers(tuple(offsets), numbers.collapsed_slice_dims, numbers.start_index_map)
    first = tuple(0 if a in paired else slice(None) for a in range(indices.ndim))
    return eqn.replace(params={**eqn.params, "dimension_numbers": plain, "slice_sizes": tuple(sizes)}), indices[first]


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


RULES = {
    "slice": slice_,
    "split": split,
    "unstack": unstack,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
}
