"""Products number by number: with scalars, with arrays along one factor's axes, and with values that also vary."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from eggroll.engine.ahead import SUM, leads
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter, Unsupported
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term, accumulator_dtype


def mul(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Multiplies by a scalar, or by an array that is constant along all but one factor's axes.

    Of two values that both vary along more, what a sum asks for stays apart until then: see `square`.
    """
    refuse_options(eqn)
    lhs, rhs = args
    both = isinstance(lhs, Perturbed) and isinstance(rhs, Perturbed)
    second = lhs.base.size < rhs.base.size if both else isinstance(rhs, Perturbed)
    try:
        return [_scaled(ctx, eqn, args, int(second), jnp.multiply)]
    except Unsupported:
        if not both or lhs.shape != rhs.shape or ctx.observer is not None or not leads(SUM, ctx.frames):
            raise
        return [replace(lhs, times=rhs)]


def div(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Divides by a scalar, or by an array that is constant along all but one factor's axes."""
    refuse_options(eqn)
    if not isinstance(args[0], Perturbed):
        raise Unsupported("division by a perturbed value")
    return [_scaled(ctx, eqn, args, 0, jnp.divide)]


def _scaled(ctx: Interpreter, eqn: Any, args: Sequence[Any], which: int, op: Any) -> Perturbed:
    """Scales `args[which]`: base and terms by what all members share, outside of them by a member's own numbers.

    A perturbed scale is made dense first.
    """
    value, other = args[which], args[1 - which]
    shape = np.shape(other.base if isinstance(other, Perturbed) else other)
    if eqn.outvars[0].aval.shape != value.shape or len(shape) not in (0, len(value.shape)):
        raise Unsupported("an implicit broadcast")
    known = range(len(shape)) if isinstance(other, Perturbed) else ctx.varying(other)
    varying = frozenset(a for a in known if shape[a] != 1)
    if not all(carries(t, varying) for t in value.terms):
        raise Unsupported("an elementwise product with an array that varies along axes of both factors")
    own = ctx.observer is None and ctx.is_own(other) and not ctx.is_own(value.base)
    other = ctx.dense(other, eqn, "a perturbed scale")
    if own:
        axes = tuple(sorted(varying))
        numbers = jnp.atleast_1d(_along(other, axes, accumulator_dtype(value.dtype), varying))
        return value.scaled_by(Factor(1 / numbers if op is jnp.divide else numbers, axes))
    terms = tuple(scale_term(t, other, varying, op) for t in value.terms)
    return replace(value, base=ctx.base(eqn, [value, other] if which == 0 else [other, value]), terms=terms)


def owning(term: Term, axis: int, size: int) -> Term:
    """The term, of which some factor owns an axis: the first, constant along it, where none did."""
    if term.owners(axis):
        return term
    first, *rest = term.factors
    return replace(term, factors=(first.expand(axis, size), *rest))


def carries(term: Term, axes: frozenset[int]) -> list[int]:
    """The numbers of the factors that own, or may be made to own, all of some axes."""
    owned = {a for f in term.factors for a in f.axes}
    return [i for i, f in enumerate(term.factors) if axes & owned <= set(f.axes)]


def widened(term: Term, axes: Collection[int], sizes: Sequence[int]) -> tuple[int, Term]:
    """The number of the first factor that carries some axes, and the term in which it owns them all."""
    i = carries(term, frozenset(axes))[0]
    f = term.factors[i]
    for axis in sorted(set(axes) - set(f.axes)):
        f = f.expand(axis, sizes[axis])
    return i, replace(term, factors=(*term.factors[:i], f, *term.factors[i + 1 :]))


def scale_term(term: Term, other: Any, varying: frozenset[int], op: Any) -> Term:
    """Scales the first factor that carries every axis along which `other` varies; a scalar goes into the scale."""
    other = jnp.asarray(other)
    by_complex = jnp.issubdtype(other.dtype, jnp.complexfloating)
    if not varying and term.scale is not None and not by_complex:
        scalar = jnp.reshape(_along(other, (), term.scale.dtype, varying), ())
        return replace(term, scale=op(term.scale, scalar))
    i, term = widened(term, varying, other.shape)
    f = term.factors[i]
    array = f.array.astype(other.dtype) if by_complex else f.array
    scaled = f.with_array(op(array, _along(other, f.axes, array.dtype, varying)))
    return replace(term, factors=(*term.factors[:i], scaled, *term.factors[i + 1 :]))


def _along(other: Any, axes: Sequence[int], dtype: DTypeLike, varying: frozenset[int]) -> Array:
    """`other` reduced to the owned axes, ready to broadcast against a factor."""
    other = jnp.asarray(other, dtype)
    if other.ndim == 0:
        return other
    index = tuple(slice(None) if a in varying else slice(0, 1) for a in range(other.ndim))
    compact = other[index]
    return lax.squeeze(compact, [a for a in range(other.ndim) if a not in axes])[..., None]


def square(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """A product with itself, number by number, of which a sum makes what it needs."""
    if eqn.params.get("y", 2) != 2 or ctx.observer is not None or not leads(SUM, ctx.frames):
        raise Unsupported("a power of a weight")
    return [replace(args[0], times=args[0])]


def refuse_options(eqn: JaxprEqn) -> None:
    """Newer JAX gives arithmetic equations options such as `out_dtype`; only their defaults are understood."""
    given = [k for k, v in eqn.params.items() if v is not None]
    if given:
        raise Unsupported(f"the options {given} of {eqn.primitive.name}")


RULES = {"mul": mul, "div": div, "square": square, "integer_pow": square}
