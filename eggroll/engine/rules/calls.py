"""Calls walked through: jit, closed_call, remat, custom_jvp and custom_vjp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Function, JaxprEqn
from eggroll.engine.interpreter import Interpreter
from eggroll.engine.lowrank import Perturbed


def inline(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Evaluates the callee in place."""
    jaxpr = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return ctx.evaluate(jaxpr, args)


def remat(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Re-emitted through `jax.checkpoint`, so that derivatives through the base still rematerialise."""
    params = eqn.params

    def wrap(fun: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        return jax.checkpoint(fun, prevent_cse=params["prevent_cse"], policy=params["policy"])

    return _forwarding(ctx, params["jaxpr"], args, wrap)


def custom_derivative(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """The function itself is walked; its own derivative rule knows only dense weights, so differentiating raises."""
    name = eqn.primitive.name
    paths = sorted({t.source.path for a in args if isinstance(a, Perturbed) for t in a.terms})
    line = jax_compat.source_line(eqn)

    def refuse(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(
            f"got a derivative through `{name}` at {line}, entered by the perturbed parameter(s) {paths}: its custom "
            "rule is written for dense weights and would give a wrong derivative of the factored ones. "
            "Differentiate the function on dense parameters (members.materialize(i)), or take the custom rule away."
        )

    def wrap(fun: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        call = jax.custom_jvp(fun)
        call.defjvp(refuse)
        return call

    return _forwarding(ctx, eqn.params["call_jaxpr"], args, wrap)


def _forwarding(ctx: Interpreter, jaxpr: Any, args: Sequence[Any], wrap: Function) -> list[Any]:
    """Calls, but hands inputs that the callee returns unchanged straight on: loops look for identity."""
    handed_on: dict[int, int] = {}

    def body(*values: Any) -> list[Any]:
        outs = ctx.evaluate(jaxpr, values)
        handed_on.update({j: i for j, out in enumerate(outs) for i, v in enumerate(values) if out is v})
        return outs

    outs = wrap(body)(*args)
    return [args[handed_on[j]] if j in handed_on else out for j, out in enumerate(outs)]


RULES = {
    "jit": inline,
    "pjit": inline,
    "closed_call": inline,
    "call": inline,
    "core_call": inline,
    "eval_jaxpr": inline,  # JAX 0.12 has it in place of call and closed_call
    "remat": remat,
    "remat2": remat,
    "checkpoint": remat,
    "custom_jvp_call": custom_derivative,
    "custom_vjp_call": custom_derivative,
    "custom_vjp_call_jaxpr": custom_derivative,
}
