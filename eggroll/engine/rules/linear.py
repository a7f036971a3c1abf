"""Rules for linear elementwise operations: sign, scale, sum, cast, copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.fallback import Unsupported
from eggroll.engine.interpreter import Interpreter, map_terms
from eggroll.engine.lowrank import Array, Factor, Perturbed, Term


def copy(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """The value itself."""
    return list(args)


def stop_gradient(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Stops the gradient of the base and of the factors."""
    return [jax.tree.map(lax.stop_gradient, args[0])]


def sharding_constraint(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Asked of the base; the factors are small, and the compiler places them."""
    (value,) = args
    return map_terms(value, ctx.base(eqn, args), lambda t: t)


def neg(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Changes the sign of one factor of each term."""
    (value,) = args
    return map_terms(value, ctx.base(eqn, args), lambda t: t.scaled(lax.neg))


def convert_element_type(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Casts base and factors between floating-point types."""
    (value,) = args
    dtype = eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating) or eqn.params.get("sharding") is not None:
        raise Unsupported(f"a cast to {dtype} is not linear, or carries a sharding")
    return map_terms(value, ctx.base(eqn, args), lambda t: t.map(lambda f: _cast(f, dtype)))


def _cast(f: Factor, dtype: Any) -> Factor:
    return f.with_array(f.numbers.astype(dtype))


def mul(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Multiplies by a scalar, or by an array that is constant along all but one factor's axes."""
    _refuse_options(eqn)
    lhs, rhs = args
    both = isinstance(lhs, Perturbed) and isinstance(rhs, Perturbed)
    second = lhs.base.size < rhs.base.size if both else isinstance(rhs, Perturbed)
    return [_scaled(ctx, eqn, args, int(second), jnp.multiply)]


def div(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Divides by a scalar, or by an array that is constant along all but one factor's axes."""
    _refuse_options(eqn)
    if not isinstance(args[0], Perturbed):
        raise Unsupported("division by a perturbed value")
    return [_scaled(ctx, eqn, args, 0, jnp.divide)]


def _scaled(ctx: Interpreter, eqn: Any, args: Sequence[Any], which: int, op: Any) -> Perturbed:
    """Scales the terms of `args[which]`; a perturbed scale is made dense first."""
    value, other = args[which], args[1 - which]
    shape = np.shape(other.base if isinstance(other, Perturbed) else other)
    if eqn.outvars[0].aval.shape != value.shape or len(shape) not in (0, len(value.shape)):
        raise Unsupported("an implicit broadcast")
    known = range(len(shape)) if isinstance(other, Perturbed) else ctx.varying(other)
    varying = frozenset(a for a in known if shape[a] != 1)
    if not all(any(varying <= set(f.axes) for f in t.factors) for t in value.terms):
        raise Unsupported("an elementwise product with an array that varies along axes of both factors")
    other = ctx.dense(other, eqn, "a perturbed scale")
    terms = tuple(_scale_term(t, other, varying, op) for t in value.terms)
    return Perturbed(ctx.base(eqn, [value, other] if which == 0 else [other, value]), terms)


def _scale_term(term: Term, other: Any, varying: frozenset[int], op: Any) -> Term:
    """Scales the first factor that owns every axis along which `other` varies; a scalar goes into the scale."""
    if not varying and term.scale is not None:
        scalar = jnp.reshape(_along(other, (), term.scale.dtype, varying), ())
        return replace(term, scale=op(term.scale, scalar))
    i = next(i for i, f in enumerate(term.factors) if varying <= set(f.axes))
    f = term.factors[i]
    scaled = f.with_array(op(f.array, _along(other, f.axes, f.array.dtype, varying)))
    return replace(term, factors=(*term.factors[:i], scaled, *term.factors[i + 1 :]))


def _along(other: Any, axes: Sequence[int], dtype: Any, varying: frozenset[int]) -> Array:
    """`other` reduced to the owned axes, ready to broadcast against a factor."""
    other = jnp.asarray(other, dtype)
    if other.ndim == 0:
        return other
    index = tuple(slice(None) if a in varying else slice(0, 1) for a in range(other.ndim))
    compact = other[index]
    return lax.squeeze(compact, [a for a in range(other.ndim) if a not in axes])[..., None]


def add(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Adds bases; the terms of both sides stand side by side."""
    _refuse_options(eqn)
    lhs, rhs = (_addends(eqn, args, a) for a in args)
    return [Perturbed(ctx.base(eqn, args), (*lhs, *rhs))]


def sub(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Adds the negative."""
    _refuse_options(eqn)
    lhs, rhs = (_addends(eqn, args, a) for a in args)
    return [Perturbed(ctx.base(eqn, args), (*lhs, *(t.scaled(lax.neg) for t in rhs)))]


def _addends(eqn: Any, args: Sequence[Any], value: Any) -> tuple[Term, ...]:
    """The terms that `value` brings into a sum; where it broadcasts, its axes of size one belong to no factor.

    A small value that broadcasts into a plain array (a bias) is better made dense while it is small.
    """
    if not isinstance(value, Perturbed):
        return ()
    shape = eqn.outvars[0].aval.shape
    if not any(isinstance(a, Perturbed) and a.shape == shape for a in args):
        raise Unsupported("an implicit broadcast")
    sizes = value.shape
    terms = value.terms if sizes == shape else [t.map(lambda f: f.squeeze(sizes)) for t in value.terms]
    return tuple(replace(t, added=True) for t in terms)


def _refuse_options(eqn: JaxprEqn) -> None:
    """Newer JAX gives arithmetic equations options such as `out_dtype`; only their defaults are understood."""
    given = [k for k, v in eqn.params.items() if v is not None]
    if given:
        raise Unsupported(f"the options {given} of {eqn.primitive.name}")


RULES = {
    "add": add,
    "add_any": add,
    "sub": sub,
    "mul": mul,
    "div": div,
    "neg": neg,
    "copy": copy,
    "copy_p": copy,
    "stop_gradient": stop_gradient,
    "convert_element_type": convert_element_type,
    "optimization_barrier": copy,
    "sharding_constraint": sharding_constraint,
}
