"""How the indices of an operation's operands belong to those of its results, one primitive after the other.

A route is a list of steps: axis of the operand, axis of the result, and which index goes where. What has no step is
taken to depend on all; so is every axis of a primitive that is not listed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eggroll.engine.annotations import JaxprEqn
from eggroll.strategy.dependence.patterns import Facts
from eggroll.strategy.dependence.steps import Route, Step, read, windowed
from eggroll.strategy.dependence.values import dims


def route(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    """The steps from an operand to a result."""
    name, into, out = eqn.primitive.name, dims(eqn.invars[operand]), dims(eqn.outvars[result])
    if name in RULES:
        return RULES[name](eqn, operand, result, facts)
    if name in ELEMENTWISE:
        return _same(into, out)
    if name in MATRICES:  # of whole matrices or vectors, the axes before them are alike
        rank = len(into) - MATRICES[name]
        return _same(into[:rank], out[:rank])
    return []


def _same(into: Sequence[int], out: Sequence[int]) -> Route:
    if len(into) != len(out):
        return []
    return [Step(a, a) for a, (m, n) in enumerate(zip(into, out, strict=True)) if m == n]


def _broadcast(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    into, out = dims(eqn.invars[operand]), dims(eqn.outvars[0])
    to = eqn.params["broadcast_dimensions"] if operand == 0 else ()
    return [Step(a, int(b)) for a, b in enumerate(to) if into[a] == out[b]]


def _transpose(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    return [Step(int(a), b) for b, a in enumerate(eqn.params["permutation"])]


def _squeeze(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    return _without(len(dims(eqn.invars[0])), eqn.params["dimensions"])


def _without(rank: int, gone: Sequence[int]) -> Route:
    left = [a for a in range(rank) if a not in tuple(gone)]
    return [Step(a, b) for b, a in enumerate(left)]


def _reduce(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    shape = dims(eqn.invars[operand])
    axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    return _without(len(shape), axes) if len(shape) else []


def _cumulative(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    shape, axis = dims(eqn.invars[0]), eqn.params["axis"]
    upper = np.tril if eqn.params["reverse"] else np.triu
    steps = [s for s in _same(shape, shape) if s.into != axis]
    return [*steps, Step(axis, axis, lambda: upper(np.ones((shape[axis],) * 2, bool)))]


def _dot(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    """Axes of a product: batch, those of the left operand, of the right one, and those that are summed over."""
    contract, batch = eqn.params["dimension_numbers"]
    ranks = [len(dims(v)) for v in eqn.invars]
    free = [[a for a in range(ranks[o]) if a not in (*contract[o], *batch[o])] for o in (0, 1)]
    start = len(batch[0]) + (len(free[0]) if operand else 0)
    steps = [Step(a, b) for b, a in enumerate(batch[operand])]
    steps += [Step(a, start + b) for b, a in enumerate(free[operand])]
    rank = len(dims(eqn.outvars[0]))
    return steps + [Step(a, rank + b) for b, a in enumerate(contract[operand])]


def _ragged_dot(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    """Rows with a matrix each of several: theirs is one, whichever it is."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    if operand != 0 or any(a in contract[0] for a in numbers.lhs_ragged_dimensions):
        return []
    free = [a for a in range(len(dims(eqn.invars[0]))) if a not in (*contract[0], *batch[0])]
    return [Step(a, b) for b, a in enumerate((*batch[0], *free))]


def _convolution(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    p, (lhs, rhs) = eqn.params, [dims(v) for v in eqn.invars]
    left, right, out = p["dimension_numbers"]
    if operand == 1:
        return [Step(right[0], out[1])] if p["batch_group_count"] == 1 else []
    steps = [Step(left[0], out[0])] if p["batch_group_count"] == 1 else []
    shape = dims(eqn.outvars[0])
    for i, (a, k, b) in enumerate(zip(left[2:], right[2:], out[2:], strict=True)):
        args = rhs[k], p["window_strides"][i], tuple(p["padding"][i]), p["rhs_dilation"][i], p["lhs_dilation"][i]
        steps.append(windowed(a, b, lhs[a], shape[b], args))
    return steps


def _reduce_window(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    p, into, out = eqn.params, dims(eqn.invars[operand]), dims(eqn.outvars[0])
    if len(into) != len(out):
        return []  # the value to start from
    keys = ("window_dimensions", "window_strides", "padding", "window_dilation", "base_dilation")
    args = zip(*(p[k] for k in keys), strict=True)
    return [windowed(a, a, into[a], out[a], (*arg[:2], tuple(arg[2]), *arg[3:])) for a, arg in enumerate(args)]


def _slice(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    p, shape = eqn.params, dims(eqn.invars[0])
    cut = zip(p["start_indices"], p["limit_indices"], p["strides"] or [1] * len(shape), strict=True)
    return [read(a, a, np.arange(*c), shape[a]) for a, c in enumerate(cut)]


def _dynamic_slice(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    """Also `dynamic_update_slice`: a part and where it lies in the whole, from starts that may be known."""
    update = eqn.primitive.name == "dynamic_update_slice"
    if operand > (1 if update else 0):
        return []
    whole, part = dims(eqn.invars[0]), dims(eqn.invars[1] if update else eqn.outvars[0])
    if update and operand == 0:
        return _same(whole, whole)
    steps = []
    for a, start in enumerate(eqn.invars[2 if update else 1 :]):
        known = facts.read(start)
        if part[a] == whole[a]:
            steps.append(Step(a, a))
        elif known is not None and known.exact.all():
            first = int(np.clip(known.value, 0, whole[a] - part[a]))
            places = np.arange(whole[a]) - first if update else np.arange(part[a]) + first
            steps.append(read(a, a, places, part[a] if update else whole[a]))
    return steps


def _pad(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    if operand:
        return []
    into, out, steps = dims(eqn.invars[0]), dims(eqn.outvars[0]), []
    for a, (low, _, between) in enumerate(eqn.params["padding_config"]):
        places = np.arange(out[a]) - low
        steps.append(read(a, a, np.where(places % (between + 1) == 0, places // (between + 1), -1), into[a]))
    return steps


def _concatenate(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    into, out, axis = dims(eqn.invars[operand]), dims(eqn.outvars[0]), eqn.params["dimension"]
    before = sum(dims(v)[axis] for v in eqn.invars[:operand])
    others = [Step(a, a) for a in range(len(into)) if a != axis]
    return [read(axis, axis, np.arange(out[axis]) - before, into[axis]), *others]


def _split(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    into, out, axis = dims(eqn.invars[0]), dims(eqn.outvars[result]), eqn.params["axis"]
    places = np.arange(out[axis]) + sum(eqn.params["sizes"][:result])
    return [read(axis, axis, places, into[axis]), *(Step(a, a) for a in range(len(into)) if a != axis)]


def _stack(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    return [Step(a, a + (a >= eqn.params["axis"])) for a in range(len(dims(eqn.invars[0])))]


def _unstack(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    return _without(len(dims(eqn.invars[0])), [eqn.params["axis"]])


def _tile(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    into, out = dims(eqn.invars[0]), dims(eqn.outvars[0])
    return [read(a, a, np.arange(m) % max(n, 1), n) for a, (n, m) in enumerate(zip(into, out, strict=True))]


def _fft(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    rank = len(dims(eqn.invars[0])) - len(eqn.params["fft_lengths"])
    return [Step(a, a) for a in range(rank)]


def _rev(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    shape, axes = dims(eqn.invars[0]), eqn.params["dimensions"]
    return [read(a, a, np.arange(n)[::-1] if a in axes else np.arange(n), n) for a, n in enumerate(shape)]


def _gather(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    whole, indices = (dims(v) for v in eqn.invars[:2])
    others = [b for b in range(len(dims(eqn.outvars[0]))) if b not in d.offset_dims]  # by axis of `indices`
    if operand == 1:
        return [Step(a, b) for a, b in enumerate(others)]
    steps = [Step(a, others[i]) for a, i in zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True)]
    kept = [a for a in range(len(whole)) if a not in (*d.collapsed_slice_dims, *d.operand_batching_dims)]
    steps += [Step(a, b) for a, b in zip(kept, d.offset_dims, strict=True) if sizes[a] == whole[a]]
    known = facts.read(eqn.invars[1])
    if len(indices) == 2 and indices[1] == 1 and known is not None and known.exact.all():
        (a,) = d.start_index_map
        if a in d.collapsed_slice_dims:
            places = np.broadcast_to(known.value, indices)[:, 0].astype(int)
            steps.append(read(a, others[0], np.clip(places, 0, whole[a] - 1), whole[a]))
    return steps


def _scatter(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    d, whole = eqn.params["dimension_numbers"], dims(eqn.outvars[0])
    if operand == 0:
        return _same(whole, whole)
    batches = zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True)
    if operand == 1:
        return [Step(i, a) for a, i in batches]
    update = dims(eqn.invars[2])
    others = [b for b in range(len(update)) if b not in d.update_window_dims]  # by axis of the indices
    kept = [a for a in range(len(whole)) if a not in (*d.inserted_window_dims, *d.operand_batching_dims)]
    steps = [Step(others[i], a) for a, i in batches]
    return steps + [Step(b, a) for a, b in zip(kept, d.update_window_dims, strict=True) if update[b] == whole[a]]


def _sort(eqn: JaxprEqn, operand: int, result: int, facts: Facts) -> Route:
    axis = eqn.params["dimension"] if "dimension" in eqn.params else eqn.params.get("axis", -1)
    shape = dims(eqn.invars[0])
    return [Step(a, a) for a in range(len(shape)) if a != axis % len(shape)]


RULES: dict[str, Any] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "fft": _fft,
    "rev": _rev,
    "gather": _gather,
    "sort": _sort,
    "top_k": _sort,
}
RULES |= dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative)
RULES |= {f"reduce_{kind}": _reduce for kind in ("sum", "max", "min", "prod", "or", "and", "xor")}
RULES |= {"reduce": _reduce, "argmax": _reduce, "argmin": _reduce}
RULES |= {f"reduce_window{kind}": _reduce_window for kind in ("", "_sum", "_max", "_min")}
RULES |= {f"scatter{kind}": _scatter for kind in ("", "-add", "-sub", "-mul", "-min", "-max")}
MATRICES = {"cholesky": 2, "triangular_solve": 2, "lu": 2, "qr": 2, "eigh": 2, "svd": 2}
NAMES = (
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil "
    "clamp clz complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge "
    "gt igamma igammac imag integer_pow is_finite layout_constraint le lgamma log log1p log2 logistic lt max min mul "
    "mulhi name ne neg nextafter not one_minus_square or polygamma population_count pow pvary real reduce_precision "
    "regularized_incomplete_beta rem reshard round rsqrt select_n sharding_constraint shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh "
    "with_memory_space_constraint xor zeta"
)
ELEMENTWISE = set(NAMES.split())
PAIRS = {"optimization_barrier", "device_put"}  # results that are the operands
