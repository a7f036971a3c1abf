"""What becomes of a value: whether all that is done with it is linear and ends in a product, or in a sum.

Only then is it kept as a base and factors. A weight times an array that members share may be an activation on its way
to a nonlinearity, which asks for the dense value at once; so does most of what uses a square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eggroll.engine import jax_compat
from eggroll.engine.interpreter import CALLS, MOVES, Frame

_WRAPPERS = CALLS | {
    *("remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}


@dataclass(frozen=True, eq=False)
class Way:
    """Where a value may end, by primitive the operands that count, and what it may go through on the way."""

    ends: Mapping[str, Sequence[bool]]
    through: frozenset[str]
    scalars: bool


PRODUCT = Way(
    {"dot_general": (True, True), "conv_general_dilated": (False, True)},
    (MOVES - CALLS - {"gather", "dynamic_slice"}) | {"add", "sub", "add_any"},
    scalars=True,
)
SUM = Way({"reduce_sum": (True,)}, frozenset({"convert_element_type"}), scalars=False)


def leads(way: Way, frames: Sequence[Frame]) -> bool:
    """Whether every use of what the innermost frame's equation gives goes that way."""
    return all(v in _found(way, frames) for v in frames[-1].eqn.outvars)


def _found(way: Way, frames: Sequence[Frame]) -> set[Any]:
    """The variables of the innermost frame of which that holds."""
    *outer, frame = frames
    if way not in frame.found:
        called = bool(outer) and outer[-1].eqn.primitive.name in _WRAPPERS | {"dot_general"}
        known = _found(way, outer) if called else set()
        wanted = [v in known for v in outer[-1].eqn.outvars] if called else None
        frame.found[way] = _backwards(way, frame.jaxpr, wanted)
    return frame.found[way]


def _backwards(way: Way, jaxpr: Any, wanted: Sequence[bool] | None = None) -> set[Any]:
    uses: dict[Any, bool] = {}

    def note(variables: Sequence[Any], good: Sequence[bool]) -> None:
        for v, g in zip(variables, good, strict=True):
            if not isinstance(v, jax_compat.Literal):
                uses[v] = g and uses.get(v, True)

    note(jaxpr.outvars, wanted or [False] * len(jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        note(eqn.invars, _entering(way, eqn, [uses.get(v, False) for v in eqn.outvars]))
    return {v for v, good in uses.items() if good}


def _entering(way: Way, eqn: Any, outs: list[bool]) -> Sequence[bool]:
    """Of every operand of an equation, from the same of its results."""
    name, n = eqn.primitive.name, len(eqn.invars)
    if name in way.ends:
        return way.ends[name]
    if name in way.through:
        return [all(outs)] * n
    if name in ("mul", "div") and way.scalars:
        scalar = [math.prod(v.aval.shape) == 1 for v in eqn.invars]
        return [outs[0] and scalar[1], outs[0] and scalar[0] and name == "mul"]
    if name in _WRAPPERS:
        return _of_inputs(way, jax_compat.inner_jaxprs(eqn)[0], outs)
    if name == "scan":
        n_consts, n_carry = jax_compat.scan_counts(eqn.params)
        inner = _of_inputs(way, eqn.params["jaxpr"])
        return [good and not n_consts <= i < n_consts + n_carry for i, good in enumerate(inner)]
    if name == "while":
        skipped, taken = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        inner = _of_inputs(way, eqn.params["body_jaxpr"])[:taken]
        return [False] * skipped + inner + [False] * (n - skipped - taken)
    if name == "cond":
        each = [_of_inputs(way, branch) for branch in eqn.params["branches"]]
        return [False, *(all(good) for good in zip(*each, strict=True))]
    return [False] * n


def _of_inputs(way: Way, jaxpr: Any, wanted: Sequence[bool] | None = None) -> list[bool]:
    jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
    known = _backwards(way, jaxpr, wanted)
    return [v in known for v in jaxpr.invars]
