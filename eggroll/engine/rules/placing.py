"""Rules that put values into larger arrays: side by side, padded, repeated, at given places, or where a mask says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import lax

from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter, Unsupported
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term
from eggroll.engine.rules.scaling import carries, owning, scale_term, widened


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
            config = {axis: (start, base.shape[axis] - start - size, 0)}
            padded = [_padded(t, part.shape, config) for t in part.terms]
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
    dtypes = [f.numbers.dtype for f in terms[0].factors]
    if any([f.axes for f in t.factors] != layout or t.rank != terms[0].rank for t in terms):
        return None
    if any([f.numbers.dtype for f in t.factors] != dtypes for t in terms):
        return None
    joined = []
    for same in zip(*(t.factors for t in terms), strict=True):
        array = lax.concatenate([f.array for f in same], same[0].position(axis))
        joined.append(same[0].with_array(array))
    return replace(terms[0], factors=tuple(joined))


def _padded(term: Term, sizes: Sequence[int], config: Mapping[int, Any]) -> Term:
    """Zero around and between the numbers, by axis, in every factor that owns the axis (at least one)."""
    for axis in config:
        term = owning(term, axis, sizes[axis])

    def pad(f: Factor) -> Factor:
        if not set(config) & set(f.axes):
            return f
        widths = [*(config.get(a, (0, 0, 0)) for a in f.axes), (0, 0, 0)]
        return f.with_array(lax.pad(f.array, jnp.zeros((), f.array.dtype), widths))

    return term.map(pad)


def pad(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """The base gets the padding value, the factors zeros."""
    value, filler = args
    if not isinstance(value, Perturbed) or isinstance(filler, Perturbed):
        raise Unsupported("padding with a perturbed value")
    config = {a: widths for a, widths in enumerate(eqn.params["padding_config"]) if any(widths)}
    return [value.map(ctx.base(eqn, args), lambda t: _padded(t, value.shape, config))]


def tile(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Repeats each factor along the axes it owns."""
    (value,) = args
    reps = eqn.params["reps"]
    if len(reps) != len(value.shape):
        raise Unsupported("tiles with new axes")

    def change(f: Factor) -> Factor:
        return f.with_array(jnp.tile(f.array, [*(reps[a] for a in f.axes), 1]))

    return [value.map(ctx.base(eqn, args), lambda t: t.map(change))]


def select_n(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Each case's terms times its mask, which may vary along the axes of one factor."""
    which, *cases = args
    if isinstance(which, Perturbed):
        raise Unsupported("a choice that a perturbed value makes")
    varying = frozenset(a for a in ctx.varying(which) if which.shape[a] != 1)
    perturbed = [(i, c) for i, c in enumerate(cases) if isinstance(c, Perturbed)]
    if not all(carries(t, varying) for _, c in perturbed for t in c.terms):
        raise Unsupported("a mask that varies along axes of both factors")
    plain = len(perturbed) < len(cases)
    terms: list[Term] = []
    for i, case in perturbed:
        mask = which == jnp.asarray(i, which.dtype)
        chosen = [scale_term(t, mask, varying, jnp.multiply) for t in case.terms]
        terms += [replace(t, added=t.added or plain) for t in chosen]
    return [Perturbed(ctx.base(eqn, args), tuple(terms))]


@dataclass(frozen=True)
class _Places:
    """Where an update lies in an operand.

    `indexed` are the operand's axes along which the indices choose; `stays` maps the update's other axes to the
    operand's; `batch` are the update's axes along which the indices vary. `put(target, values, axes)` puts `[*batch,
    *window, rank]` numbers into an array of some of the operand's axes, and rank.
    """

    shape: Sequence[int]
    update: Sequence[int]
    indexed: Sequence[int]
    stays: Mapping[int, int]
    batch: Sequence[int]
    put: Callable[[Array, Array, Sequence[int]], Array]

    @property
    def _inserted(self) -> list[int]:
        return [a for a in self.indexed if a not in self.stays.values()]

    @property
    def _window(self) -> list[int]:
        """Axes of the update that the indices move."""
        return [u for u, a in self.stays.items() if a in self.indexed]

    def placed(self, term: Term) -> Term:
        """A term of the update as one of the result: zero wherever it does not lie."""
        moved = [*self.batch, *self._window]
        holder = 0
        if self.batch:
            if len([f for f in term.factors if set(moved) & set(f.axes)]) > 1:
                raise Unsupported("places along axes of both factors")
            holder, term = widened(term, moved, self.update)
        for u in moved:
            term = owning(term, u, self.update[u])
        factors = [self._factor(f, self._inserted if i == holder else []) for i, f in enumerate(term.factors)]
        return replace(term, factors=tuple(factors))

    def _factor(self, f: Factor, inserted: Sequence[int]) -> Factor:
        order = [u for u in f.axes if u in self.batch] + [u for u in f.axes if u in self.stays]
        axes = sorted([*(self.stays[u] for u in f.axes if u in self.stays), *inserted])
        if not set(axes) & set(self.indexed):
            return f.with_array(f.array, axes=tuple(axes))
        values = jnp.transpose(f.array, (*(f.position(u) for u in order), len(order)))
        target = jnp.zeros((*(self.shape[a] for a in axes), f.rank), values.dtype)
        return f.with_array(self.put(target, values, axes), axes=tuple(axes))

    def spared(self, term: Term) -> list[Term]:
        """A term of the operand, zero where the update lies."""
        if carries(term, frozenset(self.indexed)):
            return [self._masked(term, self.indexed, 0)]
        if self.batch:
            raise Unsupported("places along axes of both factors")
        inside = term
        for axis in self.indexed:
            inside = self._masked(inside, [axis], 1)
        return [term, inside.scaled(lax.neg)]

    def _masked(self, term: Term, axes: Sequence[int], inside: int) -> Term:
        """Times `inside` where the update lies along some axes, and times 1 − `inside` elsewhere."""
        holder, term = widened(term, axes, self.shape)
        f = term.factors[holder]
        size = [self.update[u] for u in (*self.batch, *self._window) if u in self.batch or self.stays[u] in axes]
        target = jnp.full((*(self.shape[a] for a in axes), 1), 1 - inside, f.array.dtype)
        mask = self.put(target, jnp.full((*size, 1), inside, f.array.dtype), axes)
        mask = mask.reshape([self.shape[a] if a in axes else 1 for a in f.axes] + [1])
        masked = f.with_array(f.array * mask)
        return replace(term, factors=(*term.factors[:holder], masked, *term.factors[holder + 1 :]))


def dynamic_update_slice(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """The operand's terms are zero in the window, the update's outside; positions clamp as the base's do."""
    operand, update, *starts = args
    if any(isinstance(s, Perturbed) for s in starts):
        raise Unsupported("a window at a perturbed position")
    shape, sizes = operand.shape, update.shape

    def put(target: Array, values: Array, axes: Sequence[int]) -> Array:
        zero = jnp.zeros((), jnp.asarray(starts[0]).dtype)
        return lax.dynamic_update_slice(target, values, [*(starts[a] for a in axes), zero])

    indexed = [a for a, n in enumerate(sizes) if n != shape[a]]
    places = _Places(shape, sizes, indexed, {a: a for a in range(len(shape))}, (), put)
    return _placed(ctx, eqn, args, (operand, update), places, keeps=False)


def scatter(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """`x.at[i].set(y)` and `x.at[i].add(y)`: each linear in both, as far as the indices choose along one factor."""
    operand, indices, update = args
    numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    if isinstance(indices, Perturbed) or numbers.operand_batching_dims:
        raise Unsupported("places that are perturbed, or have batching dimensions")
    adds = eqn.primitive.name == "scatter-add"
    indexed, gone = numbers.scatter_dims_to_operand_dims, numbers.inserted_window_dims
    kept = [a for a in range(len(operand.shape)) if a not in gone]
    batch = [u for u in range(len(update.shape)) if u not in numbers.update_window_dims]
    if batch and not adds and not eqn.params["unique_indices"]:
        if mode != lax.GatherScatterMode.FILL_OR_DROP or set(indexed) != set(gone):
            raise Unsupported("places that may be the same")
        indices, mode = _once(indices, operand.shape, indexed), lax.GatherScatterMode.FILL_OR_DROP
        args = [operand, indices, update]

    def put(target: Array, values: Array, axes: Sequence[int]) -> Array:
        own = [a for a in indexed if a in axes]
        n, ndim = len(batch), values.ndim
        at = lax.ScatterDimensionNumbers(
            update_window_dims=tuple(range(n, ndim)),
            inserted_window_dims=tuple(axes.index(a) for a in axes if a in gone),
            scatter_dims_to_operand_dims=tuple(axes.index(a) for a in own),
        )
        columns = indices[..., jnp.asarray([indexed.index(a) for a in own])]
        return (lax.scatter_add if adds else lax.scatter)(target, columns, values, at, mode=mode)

    stays = dict(zip(numbers.update_window_dims, kept, strict=True))
    places = _Places(operand.shape, update.shape, sorted(indexed), stays, batch, put)
    return _placed(ctx, eqn, args, (operand, update), places, keeps=adds)


def _once(indices: Any, shape: Sequence[int], indexed: Sequence[int]) -> Array:
    """Indices of which the last of equal ones counts, the others are out of bounds: which wins is left open by XLA."""
    indices = indices.astype(jnp.int32)
    at = lax.ScatterDimensionNumbers((), tuple(range(len(indexed))), tuple(range(len(indexed))))
    turn = lax.iota(jnp.int32, indices[..., 0].size).reshape(indices.shape[:-1])
    last = jnp.full([shape[a] for a in indexed], -1, jnp.int32)
    last = lax.scatter_max(last, indices, turn, at, mode=lax.GatherScatterMode.FILL_OR_DROP)
    mine = last.at[tuple(jnp.moveaxis(indices, -1, 0))].get(mode="clip") == turn
    return jnp.where(mine[..., None], indices, -1)


def _placed(
    ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any], both: tuple[Any, Any], places: _Places, *, keeps: bool
) -> list[Any]:
    operand, update = both
    terms: list[Term] = []
    if isinstance(operand, Perturbed):
        terms += operand.terms if keeps else [t for term in operand.terms for t in places.spared(term)]
    if isinstance(update, Perturbed):
        beside = not isinstance(operand, Perturbed)
        terms += [replace(t, added=t.added or beside) for t in map(places.placed, update.terms)]
    return [Perturbed(ctx.base(eqn, args), tuple(terms))]


RULES = {
    "concatenate": concatenate,
    "stack": stack,
    "pad": pad,
    "tile": tile,
    "select_n": select_n,
    "dynamic_update_slice": dynamic_update_slice,
    "scatter": scatter,
    "scatter-add": scatter,
}
