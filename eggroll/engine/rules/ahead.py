"""What becomes of a product: whether all that is done with it is linear, and ends in another product.

Only then is a product of a weight with an array that members share kept as a base and factors. It may be an activation
on its way to a nonlinearity, which asks for the dense value at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import CALLS, MOVES, Frame

_THROUGH = (MOVES - CALLS - {"gather", "dynamic_slice"}) | {"add", "sub", "add_any"}
_WRAPPERS = CALLS | {
    *("remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}


def ends_in_product(frames: Sequence[Frame]) -> bool:
    """Whether every use of the result of the innermost frame's equation is linear and leads to a product."""
    eqn = frames[-1].eqn
    return all(v in _leading(frames) for v in eqn.outvars)


def _leading(frames: Sequence[Frame]) -> set[Any]:
    """The variables of the innermost frame of which that holds."""
    *outer, frame = frames
    wanted = [False] * len(frame.jaxpr.outvars)
    if outer and outer[-1].eqn.primitive.name in _WRAPPERS:
        known = _leading(outer)
        wanted = [v in known for v in outer[-1].eqn.outvars]
    return _backwards(frame.jaxpr, wanted)


def _backwards(jaxpr: Any, wanted: Sequence[bool]) -> set[Any]:
    uses: dict[Any, bool] = {}

    def note(variables: Sequence[Any], good: Sequence[bool]) -> None:
        for v, g in zip(variables, good, strict=True):
            if not isinstance(v, jax_compat.Literal):
                uses[v] = g and uses.get(v, True)

    note(jaxpr.outvars, wanted)
    for eqn in reversed(jaxpr.eqns):
        note(eqn.invars, _entering(eqn, [uses.get(v, False) for v in eqn.outvars]))
    return {v for v, good in uses.items() if good}


def _entering(eqn: JaxprEqn, outs: list[bool]) -> Sequence[bool]:
    """Of every operand of an equation, from the same of its results."""
    name, n = eqn.primitive.name, len(eqn.invars)
    if name == "dot_general":
        return [True, True]
    if name == "conv_general_dilated":
        return [False, True]
    if name in _THROUGH:
        return [all(outs)] * n
    if name in ("mul", "div"):
        scalar = [math.prod(v.aval.shape) == 1 for v in eqn.invars]
        return [outs[0] and scalar[1], outs[0] and scalar[0] and name == "mul"]
    if name in _WRAPPERS:
        (inner, *_) = jax_compat.inner_jaxprs(eqn)
        return _of_inputs(inner, outs)
    if name == "scan":
        n_consts, n_carry = jax_compat.scan_counts(eqn.params)
        inner = _of_inputs(eqn.params["jaxpr"])
        return [good and not n_consts <= i < n_consts + n_carry for i, good in enumerate(inner)]
    if name == "while":
        skipped, taken = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        inner = _of_inputs(eqn.params["body_jaxpr"])[:taken]
        return [False] * skipped + inner + [False] * (n - skipped - taken)
    if name == "cond":
        each = [_of_inputs(branch) for branch in eqn.params["branches"]]
        return [False, *(all(good) for good in zip(*each, strict=True))]
    return [False] * n


def _of_inputs(jaxpr: Any, wanted: Sequence[bool] | None = None) -> list[bool]:
    jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
    known = _backwards(jaxpr, wanted or [False] * len(jaxpr.outvars))
    return [v in known for v in jaxpr.invars]
