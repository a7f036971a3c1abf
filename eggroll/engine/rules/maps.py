"""A loop over parts that carries nothing, as `lax.map` makes it: what it makes of a weight's rows is a weight again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax

from eggroll.engine import jax_compat
from eggroll.engine.ahead import BATCHED
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.interpreter import Interpreter, Policy
from eggroll.engine.perturbed import Perturbed, Term


def mapped(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any] | None:
    """Such a scan as one step for all parts, or None: it is to be walked.

    Discovery looks at all of them so. Those of parameters alone are evaluated so where nothing as large as these
    is dense then: else a part at a time takes less memory.
    """
    n_consts, n_carry = jax_compat.scan_counts(eqn.params)
    discovering, length = ctx.observer is not None, eqn.params["length"]
    if n_carry or not length or eqn.effects or jax_compat.draws_inside(eqn) or jax_compat.holds(eqn, BATCHED):
        return None
    if not discovering and id(eqn) not in ctx.weights.alone:
        return None

    def turn(*values: Any) -> list[Any]:
        return Interpreter(Policy("allow")).evaluate(eqn.params["jaxpr"], values)

    axes = [None] * n_consts + [0] * (len(args) - n_consts)
    jaxpr = jax.make_jaxpr(jax.vmap(turn, axes, axis_size=length))(*map(shape_of, args))
    values = [walked(a) if axis == 0 else a for a, axis in zip(args, axes, strict=True)]
    if discovering:
        return ctx.evaluate(jaxpr, values)
    ctx.weights.join(eqn, jaxpr)

    def attempt(*own: Any) -> list[Any]:
        ctx.hand_on(values, own)
        return ctx.evaluate(jaxpr, own)

    with ctx.silent():
        shapes = jax.eval_shape(attempt, *values)
    least = min(a.base.size for a in args if isinstance(a, Perturbed))
    thin = all(isinstance(s, Perturbed) or s.size < least for s in shapes)
    return ctx.evaluate(jaxpr, values) if thin else None


def walked(x: Any) -> Any:
    """A scanned input, with the parameter axes that the loop walks noted down."""

    def change(term: Term) -> Term:
        return replace(term, walked=term.walked.union(*(f.origin for f in term.owners(0))))

    return x.map(x.base, change) if isinstance(x, Perturbed) else x


def shape_of(value: Any) -> jax.ShapeDtypeStruct:
    """Of the dense form."""
    return jax_compat.abstract(value.base if isinstance(value, Perturbed) else value)
