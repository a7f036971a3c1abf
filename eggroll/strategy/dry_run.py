"""Evaluates two pairs of members, shapes only: where factors cannot be kept apart, and what kernels do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eggroll.engine import jax_compat
from eggroll.engine.factored import Program, partition
from eggroll.engine.fallback import DenseFallback, Policy
from eggroll.engine.interpreter import Interpreter
from eggroll.ops import Choice
from eggroll.strategy.inputs import Rows
from eggroll.strategy.noise.sampler import Sampler, member_sign
from eggroll.strategy.plan.leaves import Plan

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


def for_kernels(program: Program, plan: Plan, params: Any, rows: Rows, distribution: str) -> Plan:
    """The plan, in which only those factors stay keys that nothing but kernels uses.

    Anything else would draw them anew at every use: at every turn of a loop, where arrays are drawn once.
    """
    sampler = Sampler(plan, distribution, None)
    if not any(sampler.seeded(leaf) for leaf in plan.leaves):
        return plan
    found = dry_run(program, plan, params, rows, distribution, None)
    drawn = {choice.name for choice in found.choices if choice.implementation == "reference"}
    return Plan(tuple(replace(leaf, matrix=None) if leaf.path in drawn else leaf for leaf in plan.leaves))


def dry_run(program: Program, plan: Plan, params: Any, rows: Rows, distribution: str, members: int | None) -> DryRun:
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

    def run(words: jax.Array, params: Any, args: list[Any]) -> Any:
        def member(noise: Any, index: Any, args: list[Any]) -> Any:
            seen = sampler.perturb(params, noise, member_sign(index), 1.0)
            return program.evaluate(Interpreter(policy), (seen, *merge(args)))

        pair = jax.vmap(member, in_axes=(None, 0, axes))
        return jax.vmap(pair, in_axes=(0, None, axes))(sampler.draw(words), jnp.arange(SIGNS), args)

    words = jax.ShapeDtypeStruct((UNITS, sampler.streams.words), jnp.uint32)
    found = map(Choice.in_scope, jax_compat.name_stacks(jax.make_jaxpr(run)(words, params, own)))
    return DryRun(policy.records, [choice for choice in found if choice and choice.name])
