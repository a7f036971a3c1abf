"""A function, its parameters and its other arguments, traced for one member and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.factored import Program, abstract, trace
from eggroll.engine.paths import leaf_paths
from eggroll.engine.usage import discover
from eggroll.strategy.dry_run import for_kernels
from eggroll.strategy.inputs import Rows
from eggroll.strategy.plan.leaves import Plan, make_plan
from eggroll.strategy.plan.rules import Rules


def trace_member(fun: Callable[..., Any], params: Any, rows: Rows) -> Program:
    """Traces `fun(params, *args)` as one member sees it."""
    return trace(fun, (params, *rows.abstract()))


def plan_for(program: Program, params: Any, rows: Rows, *, rank: int, rules: Rules, distribution: str) -> Plan:
    """Discovers how the program uses the parameters and decides their perturbation."""
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    plan = make_plan(params, uses, rank=rank, rules=rules)
    return for_kernels(program, plan, jax.tree.map(abstract, params), rows, distribution)


def check_covered(plan: Plan, program: Program, params: Any, rows: Rows) -> None:
    """Raises if the program reads parameters that the plan, made for an earlier function, holds for unused."""
    idle = [leaf.path for leaf in plan.leaves if leaf.kind == "unused" and math.prod(leaf.shape)]
    if not idle:
        return
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    late = [path for path in idle if uses[path]]
    if late:
        raise ValueError(
            f"the function uses {', '.join(late[:5])}, which the first function of this ES did not use: the plan gives "
            "them no noise, and they would never move. Apply a function of all parameters first, or make another ES."
        )


def check_scalar(program: Program, has_aux: bool, what: str) -> None:
    """Raises unless the program returns a real scalar, or `(scalar, aux)`."""
    check_scalar_shape(program.out_shape, has_aux, what)


def check_scalar_shape(out: Any, has_aux: bool, what: str) -> None:
    """Raises unless a function that returns these shapes returns a real scalar, or `(scalar, aux)`."""
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"has_aux=True requires the function to return ({what}, aux); got {_describe(out)}.")
    value = out[0] if has_aux else out
    if not isinstance(value, jax.ShapeDtypeStruct):
        hint = "" if has_aux else "; pass has_aux=True for a function that returns a pair"
        raise TypeError(f"the function must return one scalar {what} per member; got {_describe(value)}{hint}.")
    if value.shape != ():
        raise ValueError(
            f"the function must return one scalar {what} per member; got shape {value.shape}. Reduce it, for "
            "instance with .mean()."
        )
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"the {what} must be real; got {value.dtype}. Take its real part or its modulus.")


def _describe(tree: Any) -> str:
    return str(jax.tree.structure(tree)) + " of shapes " + str([x.shape for x in jax.tree.leaves(tree)])


def split_aux(has_aux: bool) -> Callable[[Any], tuple[Any, Any]]:
    """Parts a member's output into its scalar and its auxiliary output."""
    return (lambda out: (out[0], out[1])) if has_aux else (lambda out: (out, ()))


def nothing_finite(what: str, population: int) -> FloatingPointError:
    """The error for a generation of which nothing can be learned."""
    return FloatingPointError(
        f"got no finite {what} among {population} members (with antithetic pairs, a pair counts only when both are "
        f"finite): nothing was updated. Look at the {what} of the unperturbed parameters; if it is finite, lower sigma."
    )
