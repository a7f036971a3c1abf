"""A function, its parameters and its other arguments, traced and checked: for one member, and for two pairs of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.factored import Program, abstract, partition, trace
from eggroll.engine.fallback import DenseFallback, Policy
from eggroll.engine.interpreter import Interpreter
from eggroll.engine.paths import leaf_paths
from eggroll.engine.usage import discover
from eggroll.ops import Choice
from eggroll.strategy.evaluate.inputs import Rows
from eggroll.strategy.mesh.placement import for_mesh
from eggroll.strategy.noise.sampler import Sampler, member_sign
from eggroll.strategy.plan.leaves import Plan, make_plan
from eggroll.strategy.plan.rules import Rules
from eggroll.strategy.population import Population


def trace_member(fun: Function, params: PyTree, rows: Rows) -> Program:
    """Traces `fun(params, *args)` as one member sees it."""
    return trace(fun, (params, *rows.abstract()))


def plan_for(program: Program, params: PyTree, rows: Rows, *, rank: int, rules: Rules, distribution: str) -> Plan:
    """Discovers how the program uses the parameters and decides their perturbation."""
    uses = discover(program, leaf_paths(params), (params, *rows.abstract()))
    plan = make_plan(params, uses, rank=rank, rules=rules)
    return for_kernels(program, plan, jax.tree.map(abstract, params), rows, distribution)


def check_covered(plan: Plan, program: Program, params: PyTree, rows: Rows) -> None:
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


def check_scalar_shape(out: PyTree, has_aux: bool, what: str) -> None:
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


def _describe(tree: PyTree) -> str:
    return str(jax.tree.structure(tree)) + " of shapes " + str([x.shape for x in jax.tree.leaves(tree)])


def split_aux(has_aux: bool) -> Callable[[Any], tuple[Any, Any]]:
    """Parts a member's output into its scalar and its auxiliary output."""
    return (lambda out: (out[0], out[1])) if has_aux else (lambda out: (out, ()))


UNITS, SIGNS = 2, 2


class DryRun(NamedTuple):
    """What was found.

    Attributes:
        fallbacks: every place where a perturbation has to be made dense.
        choices: what computes with factors that stay keys.
    """

    fallbacks: Sequence[DenseFallback]
    choices: Sequence[Choice]

    def implementations(self, path: str) -> tuple[str, ...]:
        """Of the products of one parameter whose factors stay keys."""
        return tuple(dict.fromkeys(choice.implementation for choice in self.choices if choice.name == path))


def for_kernels(program: Program, plan: Plan, params: PyTree, rows: Rows, distribution: str) -> Plan:
    """The plan, in which only those factors stay keys that nothing but kernels uses.

    Anything else would draw them anew at every use: at every turn of a loop, where arrays are drawn once.
    """
    sampler = Sampler(plan, distribution, None)
    if not any(sampler.seeded(leaf) for leaf in plan.leaves):
        return plan
    found = dry_run(program, plan, params, rows, distribution, None)
    drawn = {choice.name for choice in found.choices if choice.implementation == "reference"}
    return Plan(tuple(replace(leaf, matrix=None) if leaf.path in drawn else leaf for leaf in plan.leaves))


def dry_run(program: Program, plan: Plan, params: PyTree, rows: Rows, distribution: str, members: int | None) -> DryRun:
    """Traces the evaluation of two pairs.

    Args:
        program: the function of one member, traced.
        plan: how each parameter is perturbed.
        params: the parameters, or their shapes.
        rows: the other arguments, or their shapes.
        distribution: of the noise.
        members: population, for messages.

    Returns:
        What it is made of.
    """
    policy, sampler = Policy("allow"), Sampler(plan, distribution, members)
    args, merge, _ = partition(rows.abstract())
    own = [
        jax.ShapeDtypeStruct((UNITS, SIGNS, *a.shape), a.dtype) if axis is not None else a
        for a, axis in zip(args, rows.axes, strict=True)
    ]
    axes = [None if axis is None else 0 for axis in rows.axes]

    def run(words: jax.Array, params: PyTree, args: list[Any]) -> Any:
        def member(noise: Any, index: Any, args: list[Any]) -> Any:
            seen = sampler.perturb(params, noise, member_sign(index), 1.0)
            return program.evaluate(Interpreter(policy), (seen, *merge(args)))

        pair = jax.vmap(member, in_axes=(None, 0, axes))
        return jax.vmap(pair, in_axes=(0, None, axes))(sampler.draw(words), jnp.arange(SIGNS), args)

    words = jax.ShapeDtypeStruct((UNITS, sampler.streams.words), jnp.uint32)
    found = map(Choice.in_scope, jax_compat.name_stacks(jax.make_jaxpr(run)(words, params, own)))
    return DryRun(policy.records, [choice for choice in found if choice and choice.name])


class Plans:
    """Plans by the parameters' shapes: the first function seen decides, for all later generations of a strategy."""

    def __init__(self, settings: Population, *, rank: int, rules: Rules) -> None:
        self._settings, self._rank, self._rules = settings, rank, rules
        self._known: dict[Any, Plan] = {}

    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """The plan; without a function one by shapes alone, which later generations do not inherit."""
        leaves, tree = jax.tree.flatten(params)
        key = (tree, tuple((tuple(x.shape), str(x.dtype)) for x in leaves))
        if key not in self._known:
            if fun is None or rows is None:
                return make_plan(params, None, rank=self._rank, rules=self._rules)
            shapes = jax.tree.map(abstract, params)
            program = trace_member(fun, shapes, rows)
            options: dict[str, Any] = {"rank": self._rank, "rules": self._rules}
            plan = plan_for(program, shapes, rows, distribution=self._settings.distribution, **options)
            self._known[key] = for_mesh(plan, self._settings)
        return self._known[key]
