"""Rules of linear maps along axes (cumulative sums, Fourier transforms), and of real and imaginary parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter, Unsupported
from eggroll.engine.perturbed import Array, Factor, Perturbed, Term
from eggroll.engine.rules.linear import is_complex, to_complex
from eggroll.engine.rules.scaling import owning


def _along(term: Term, axis: int, size: int, change: Callable[[Array, int], Array]) -> Term:
    """A linear map along one axis, of the one factor that owns it."""
    term = owning(term, axis, size)
    if len(term.owners(axis)) > 1:
        raise Unsupported("a map along an axis of both factors")
    return term.map(lambda f: f.with_array(change(f.array, f.position(axis))) if axis in f.axes else f)


def cumsum(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Sums up the factor that owns the axis."""
    (value,) = args
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]

    def change(array: Array, i: int) -> Array:
        return lax.cumsum(array, i, reverse=reverse)

    terms = tuple(_along(t, axis, value.shape[axis], change) for t in value.terms)
    return [replace(value, base=ctx.base(eqn, args), terms=terms)]


def fft(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """One axis after the other, each in the factor that owns it, which becomes complex."""
    (value,) = args
    kind, lengths = lax.FftType(eqn.params["fft_type"]), eqn.params["fft_lengths"]
    first = len(value.shape) - len(lengths)
    inner = {lax.FftType.RFFT: lax.FftType.FFT, lax.FftType.IRFFT: lax.FftType.IFFT}.get(kind, kind)
    steps = [(first + i, kind if i == len(lengths) - 1 else inner, n) for i, n in enumerate(lengths)]
    if kind == lax.FftType.RFFT:
        steps.reverse()

    def change(term: Term) -> Term:
        for axis, own_kind, length in steps:
            if own_kind == lax.FftType.IRFFT and ctx.observer is None and _others_complex(term, axis):
                raise Unsupported("a real transform of a product of complex factors")
            term = _along(term, axis, value.shape[axis], lambda a, i, k=own_kind, n=length: _fft(a, i, k, n))
        return term

    terms = tuple(change(t) for t in value.terms)
    return [replace(value, base=ctx.base(eqn, args), terms=terms)]


def _others_complex(term: Term, axis: int) -> bool:
    return any(is_complex(f) for f in term.factors if axis not in f.axes)


def _fft(array: Array, axis: int, kind: lax.FftType, length: int) -> Array:
    if kind != lax.FftType.RFFT and not jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = array.astype(jnp.complex128 if array.dtype == jnp.float64 else jnp.complex64)
    return jnp.moveaxis(lax.fft(jnp.moveaxis(array, axis, -1), kind, (length,)), -1, axis)


def complex_(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """The terms of both parts, those of the imaginary one times i."""
    base = ctx.base(eqn, args)
    real, imag = ((a.terms if isinstance(a, Perturbed) else ()) for a in args)
    unit = np.asarray(1j, base.dtype)

    def turned(term: Term) -> Term:
        first, *rest = term.factors
        return replace(term, factors=(first.with_array(first.array.astype(base.dtype) * unit), *rest))

    return [Perturbed(base, (*real, *map(turned, imag)))]


def conj(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Of every complex factor; of a real value a cast."""
    (value,) = args
    if not jnp.issubdtype(value.dtype, jnp.complexfloating):
        return [to_complex(ctx, eqn, value)]

    def change(f: Factor) -> Factor:
        return f.with_array(jnp.conj(f.array)) if is_complex(f) else f

    return [value.map(ctx.base(eqn, args), lambda t: t.map(change))]


def real(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """`re(f·g) = re f·re g − im f·im g`."""
    return _part(ctx, eqn, args, imaginary=False)


def imag(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """`im(f·g) = re f·im g + im f·re g`."""
    return _part(ctx, eqn, args, imaginary=True)


def _part(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any], *, imaginary: bool) -> list[Any]:
    (value,) = args
    terms = tuple(part for t in value.terms for part in _parts(t, imaginary))
    base = ctx.base(eqn, args)
    return [replace(value, base=base, terms=terms) if terms else base]


def _parts(term: Term, imaginary: bool) -> list[Term]:
    """The real or imaginary part of a term, as terms of real factors."""
    numbers = [i for i, f in enumerate(term.factors) if is_complex(f)]
    if not numbers:
        return [] if imaginary else [term]
    i = numbers[0]
    f = term.factors[i]

    def with_first(part: Array) -> Term:
        return replace(term, factors=(*term.factors[:i], f.with_array(part), *term.factors[i + 1 :]))

    same, other = with_first(jnp.real(f.array)), with_first(jnp.imag(f.array))
    if not imaginary:
        return [*_parts(same, False), *(t.scaled(lax.neg) for t in _parts(other, True))]
    return [*_parts(same, True), *_parts(other, False)]


RULES = {"cumsum": cumsum, "fft": fft, "complex": complex_, "conj": conj, "real": real, "imag": imag}
