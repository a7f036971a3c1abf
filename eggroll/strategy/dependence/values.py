"""What an equation makes of values that are known before the program runs: constants, masks, and what masks do.

A `Known` array has as many axes as the value that it describes, of length 1 wherever the value is the same along an
axis, so that a causal mask for 100,000 rows is one square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.jax_compat import bind, inner_jaxprs

MOST = 2**24  # entries of an array that is worth its time; what is larger counts as unknown
SMALL = 2**20  # of one that JAX computes
LOW = -1e8  # what masks add to scores: whatever else is added, `exp` of it is 0
SAME = {"stop_gradient", "copy", "name", "sharding_constraint", "layout_constraint", "reshard", "pvary"}
Array: TypeAlias = Any  # of NumPy, whose types say that a reduction may return a number


class Known(NamedTuple):
    """Of each entry: is it the same for all inputs (`exact`), and `value`; far below zero (`low`); or `maybe` so.

    Inputs are taken to be of ordinary size. What data may mask, or a loop brings, may be low.
    """

    value: Array
    exact: Array
    low: Array
    maybe: Array


def dims(var: Any) -> tuple[int, ...]:
    """The shape of a variable or number."""
    return tuple(var.aval.shape)


def constant(x: Any) -> Known | None:
    """An array or number that the program holds."""
    if isinstance(x, Tracer) or np.size(x) > MOST // 4 or jnp.issubdtype(jax.typeof(x).dtype, jax.dtypes.prng_key):
        return None
    value = np.asarray(x)
    for axis, n in enumerate(value.shape):
        first = value[(slice(None),) * axis + (slice(0, 1),)]
        if n > 1 and (value == first).all():
            value = first
    return exactly(value)


def exactly(value: np.ndarray) -> Known:
    """A value known everywhere."""
    ones = (1,) * value.ndim
    return _low(value, np.ones(ones, bool), np.zeros(ones, bool), np.zeros(ones, bool))


def unknown(aval: Any, maybe: bool = False) -> Known:
    """A value of which nothing is known, but perhaps that it may be low."""
    nothing = np.zeros((1,) * len(aval.shape), bool)
    plain = aval.dtype if isinstance(aval.dtype, np.dtype) else np.dtype(bool)
    return Known(nothing.astype(plain), nothing, nothing, nothing | (maybe and _is_float(aval.dtype)))


def zeros(known: Known | None) -> np.ndarray | None:
    """Which entries are surely 0."""
    return None if known is None else known.exact & (known.value == 0)


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.floating)


def _low(value: Array, exact: Array, low: Array, maybe: Array) -> Known:
    if _is_float(value.dtype):
        low = (low & ~exact) | (exact & (value <= LOW))
    return Known(value, exact, low, maybe & ~low & ~exact)


@np.errstate(over="ignore", invalid="ignore")  # as in JAX: what overflows is infinite
def evaluate(eqn: JaxprEqn, args: list[Known | None]) -> Known | None:
    """What is known of the only result of an equation."""
    name, params, out = eqn.primitive.name, eqn.params, eqn.outvars[0]
    if name == "iota":
        ones = [n if axis == params["dimension"] else 1 for axis, n in enumerate(dims(out))]
        return exactly(np.arange(dims(out)[params["dimension"]]).astype(params["dtype"]).reshape(ones))
    if all(known is None for known in args) or name.startswith(("random_", "rng_", "threefry")):
        return None
    whole = [unknown(v.aval) if k is None else k for k, v in zip(args, eqn.invars, strict=True)]
    size = math.prod(np.broadcast_shapes(*(x.shape for k in whole for x in k))) if name in BROADCASTS else 0
    result = None
    if name in MOVES and 0 not in dims(out):
        parts = [MOVES[name](eqn, x) for x in whole[0]]
        result = None if any(x is None for x in parts) else Known(*parts)
    elif name in SAME:
        result = whole[0]
    elif name == "convert_element_type" and isinstance(params["new_dtype"], np.dtype):
        floats = _is_float(params["new_dtype"])
        result = _low(whole[0].value.astype(params["new_dtype"]), whole[0].exact, *(x & floats for x in whole[0][2:]))
    elif name in BROADCASTS and size <= MOST and (name != "div" or _is_float(whole[0].value.dtype)):
        with suppress(TypeError):  # NumPy has not got every operation for every type of JAX's
            result = _selected(whole) if name == "select_n" else _elementwise(name, whole)
    elif name in REDUCTIONS and 0 not in dims(eqn.invars[0]):
        result = _reduced(eqn, whole[0])
    return (result or _computed(eqn, args)) or _doubtful(eqn, whole)


def _doubtful(eqn: JaxprEqn, whole: list[Known]) -> Known | None:
    """What an operation without a rule makes of masks may be low; a product of what only may be low is taken not to."""
    sure = eqn.primitive.name in ("dot_general", "conv_general_dilated")
    maybe = any(k.low.any() or (k.maybe.any() and not sure) for k in whole)
    return unknown(eqn.outvars[0].aval, True) if maybe else None


NUMPY: dict[str, Any] = {"add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
NUMPY |= {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
NUMPY |= {"ge": np.greater_equal, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or}
NUMPY |= {"xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "abs": np.abs, "sign": np.sign}
NUMPY |= {"floor": np.floor, "ceil": np.ceil, "exp": np.exp, "exp2": np.exp2, "log": np.log, "sqrt": np.sqrt}
NUMPY |= {"square": np.square, "rem": np.fmod, "is_finite": np.isfinite, "logistic": lambda x: 1 / (1 + np.exp(-x))}
BROADCASTS = {*NUMPY, "select_n"}


def _elementwise(name: str, whole: list[Known]) -> Known:
    value, exact = np.asarray(NUMPY[name](*(k.value for k in whole))), whole[0].exact
    low, maybe = exact & False, np.logical_or(whole[0].maybe, whole[0].low)
    if len(whole) == 2:
        return _two(name, whole[0], whole[1], value)
    if name in ("exp", "exp2", "logistic"):
        value, exact, maybe = np.where(whole[0].low, 0, value).astype(value.dtype), exact | whole[0].low, low
    elif name == "neg":  # of something large and positive, which is not told apart
        maybe = maybe | True
    return _low(value, exact, low, maybe if _is_float(value.dtype) else low & False)


def _two(name: str, a: Known, b: Known, value: Array) -> Known:
    """An operation of two, one of which may decide alone."""
    exact, none = a.exact & b.exact, value.dtype.type(0)
    low, maybe = exact & False, a.maybe | b.maybe | a.low | b.low
    if name == "mul" or (name == "and" and value.dtype == bool):
        nought = (a.exact & (a.value == 0)) | (b.exact & (b.value == 0))
        value, exact = np.where(nought, none, value), exact | nought
        maybe = maybe | any((k.exact & (np.abs(k.value) >= -LOW)).any() for k in (a, b))
    elif name == "or" and value.dtype == bool:
        true = (a.exact & a.value) | (b.exact & b.value)
        value, exact = value | true, exact | true
    elif name == "div":
        nought = a.exact & (a.value == 0) & ~(b.exact & (b.value == 0))
        value, exact = np.where(nought, none, value), exact | nought
    elif name in ("add", "add_any", "sub"):
        small_a, small_b = (~k.exact | (np.abs(k.value) < -LOW / 10) for k in (a, b))
        if name == "sub":
            low = a.low & small_b & ~b.low & ~b.maybe
        else:
            low = (a.low & small_b) | (b.low & small_a) | (a.low & b.low)
    elif name == "max":
        low, maybe = a.low & b.low, (a.maybe | a.low) & (b.maybe | b.low)
        one, other = ((x.low & y.exact & ~y.low) for x, y in ((a, b), (b, a)))
        value, exact = np.where(one, b.value, np.where(other, a.value, value)), exact | one | other
    return _low(value, exact, low, maybe if _is_float(value.dtype) else low & False)


def _selected(args: list[Known]) -> Known:
    which, cases = args[0], args[1:]
    size = np.broadcast_shapes(*(x.shape for k in args for x in k))
    index, first = np.broadcast_to(which.value.astype(int), size), cases[0].value
    picked = [np.broadcast_to(x, size) for x in cases[0]]
    same, low, maybe = np.ones(size, bool), np.ones(size, bool), np.zeros(size, bool)
    for number, k in enumerate(cases):  # where it is not known which, all have to agree
        picked = [np.where(index == number, x, old) for x, old in zip(k, picked, strict=True)]
        same, low, maybe = same & k.exact & (k.value == first), low & k.low, maybe | k.maybe | k.low
    known = zip(picked, (first, same, low, maybe), strict=True)
    value, exact, low, maybe = (np.where(which.exact, mine, other) for mine, other in known)
    return _low(value, exact, low, maybe)


REDUCTIONS: dict[str, Any] = {"reduce_sum": np.sum, "reduce_max": np.max, "reduce_or": np.any, "reduce_and": np.all}


def _reduced(eqn: JaxprEqn, known: Known) -> Known | None:
    axes = tuple(int(a) for a in eqn.params["axes"])
    full = [n if a in axes else 1 for a, n in enumerate(dims(eqn.invars[0]))]
    if math.prod(np.broadcast_shapes(*(x.shape for x in known), full)) > MOST:
        return None
    value, exact, low, maybe = (np.broadcast_to(x, np.broadcast_shapes(x.shape, full)) for x in known)
    if eqn.primitive.name == "reduce_max" and _is_float(value.dtype):
        sure = (exact | low).all(axes) & (exact & ~low).any(axes)
        best = np.where(exact, value, value.dtype.type(-np.inf)).max(axes)
        return _low(best, sure | exact.all(axes), low.all(axes), np.logical_or(low, maybe).all(axes))
    result = np.asarray(REDUCTIONS[eqn.primitive.name](value, axis=axes)).astype(value.dtype)
    return _low(
        result, exact.all(axes), low.all(axes) & False, np.logical_or(low, maybe).any(axes) & _is_float(result.dtype)
    )


def reshaped(x: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray | None:
    """`x`, of length 1 wherever a value of shape `old` is the same, for the value in its new shape."""
    wide, small, i, j = list(x.shape), [1] * len(new), 0, 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (p := math.prod(old[first:i])) != (q := math.prod(new[second:j])):
            i, j = (i + 1, j) if p < q else (i, j + 1)
        if any(n > 1 for n in x.shape[first:i]):
            wide[first:i] = old[first:i]
            small[second:j] = new[second:j]
    return None if math.prod(wide) > MOST else np.broadcast_to(x, wide).reshape(small)


def _broadcast(eqn: JaxprEqn, x: np.ndarray) -> np.ndarray:
    ones = [1] * len(dims(eqn.outvars[0]))
    for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
        ones[to] = x.shape[axis]
    return x.reshape(ones)


def _sliced(eqn: JaxprEqn, x: np.ndarray) -> np.ndarray:
    p = eqn.params
    cut = zip(p["start_indices"], p["limit_indices"], p["strides"] or [1] * x.ndim, strict=True)
    return x[tuple(slice(*c) if n > 1 else slice(None) for c, n in zip(cut, x.shape, strict=True))]


MOVES: dict[str, Any] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda eqn, x: reshaped(x, dims(eqn.invars[0]), dims(eqn.outvars[0])),
    "squeeze": lambda eqn, x: np.squeeze(x, tuple(eqn.params["dimensions"])),
    "transpose": lambda eqn, x: np.transpose(x, eqn.params["permutation"]),
    "slice": _sliced,
    "rev": lambda eqn, x: np.flip(x, tuple(eqn.params["dimensions"])),
}


def _computed(eqn: JaxprEqn, args: list[Known | None]) -> Known | None:
    """Any other equation, of small arrays that are known throughout."""
    sizes = [math.prod(dims(v)) for v in (*eqn.invars, *eqn.outvars)]
    known = [k for k in args if k is not None and k.exact.all()]
    if len(known) < len(args) or inner_jaxprs(eqn) or eqn.effects or max(sizes) > SMALL:
        return None
    if "callback" in eqn.primitive.name:
        return None
    with jax.ensure_compile_time_eval():
        whole = zip(known, eqn.invars, strict=True)
        return constant(bind(eqn, [jnp.asarray(np.broadcast_to(k.value, dims(v))) for k, v in whole])[0])
