"""The gradient from noise on layers' outputs: one walk without noise, whatever the population.

At a site, noise `ε` times what it is credited with estimates the loss's derivative by that output; what the parameter
receives is the transpose of the one operation that it enters, at the inputs of the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from eggroll.engine.annotations import Index, PyTree
from eggroll.engine.factored import Program, partition
from eggroll.engine.interpreter import Policy
from eggroll.strategy.activations.credit import Relation, credits, relations
from eggroll.strategy.activations.noise import Credited
from eggroll.strategy.activations.sites import walked
from eggroll.strategy.activations.streams import Streams
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import AXIS, Population
from eggroll.strategy.state import Placement

AT_ONCE = 1 << 24  # numbers of the parameters' sums of members that have rows of their own


@dataclass(frozen=True)
class Ran:
    """What members were evaluated with.

    Attributes:
        program: the function of one member, traced.
        rows: its other arguments.
        told: whether fitness was made of its output elsewhere, row by row where there are several for a member.
        wrote: of a function that writes turn by turn: `program` and `rows` are then those of reading it again.
    """

    program: Program
    rows: Rows
    told: bool = False
    wrote: Callable[[PyTree], jax.Array] | None = None

    def relations(self, plan: Plan, params: PyTree, losses: tuple[int, ...]) -> Sequence[Relation | None]:
        """Which of a member's losses depend on which rows of each site.

        Raises:
            ValueError: losses that are no rows of the output.
        """
        if self.told and not losses:
            return [()] * len(plan.sites)
        first = jax.tree.leaves(self.program.out_shape)[0]
        if first.shape[: len(losses)] != losses:
            raise ValueError(
                f"got fitness of shape {losses} for each member, from an output of shape {first.shape}: one number, or "
                "one for each row (and token), the output's first axes, is required."
            )
        found = relations(self.program, plan, params, self.rows.abstract())
        return [None if relation is None else relation[: len(losses)] for relation in found]


def sum_activations(
    population: Population,
    plan: Plan,
    program: Program,
    key: jax.Array,
    weights: jax.Array,
    found: Sequence[Relation | None],
    params: PyTree,
    rows: Rows,
    placement: Placement | None,
) -> dict[int, jax.Array]:
    """What sites give their parameters, all members together.

    Args:
        population: who the members are.
        plan: of the program.
        program: the function of one member, traced.
        key: of the generation.
        weights: `[N, *losses]`, shaped fitness of every member and loss.
        found: of each site, which losses depend on which of its rows.
        params: the parameters.
        rows: the other arguments.
        placement: on a mesh, where things lie.

    Returns:
        Number of the parameter → `Σ wᵢ·(its operation's transpose of εᵢ)`.
    """
    signs = population.signs

    def walk(key: jax.Array, params: PyTree, args: tuple, start: Index, weights: jax.Array) -> dict[int, jax.Array]:
        streams = Streams.of(key, plan.sites, population.distribution, population.size)
        credit = credits(plan.sites, found, weights, population.credit, population.discount)
        hook = Credited(streams, start, credit, population.relative)
        return walked(program, hook, Policy("allow"), (params, *args), plan.by_output, summing=True)[1].sums

    def share(key: jax.Array, params: PyTree, rows: Rows, first: Index, weights: jax.Array) -> dict[int, jax.Array]:
        if all(axis is None for axis in rows.axes):
            per_unit = weights[0::2] - weights[1::2] if signs == 2 else weights
            return walk(key, params, rows.args, first // signs, per_unit)
        return _one_by_one(partial(walk, key), params, rows, first, weights, signs)

    if placement is None:
        return share(key, params, rows, 0, weights)
    mesh = placement.mesh
    count = population.size // mesh.shape[AXIS]
    arrays, merge, _ = partition((key, params, rows.args))

    def local(arrays: list[Any], weights: jax.Array) -> dict[int, jax.Array]:
        key, params, args = merge(arrays)
        first = lax.axis_index(AXIS) * count
        return lax.psum(share(key, params, Rows(args, rows.axes, rows.population), first, weights), AXIS)

    each, whole = PartitionSpec(AXIS), PartitionSpec()
    options: dict[str, Any] = {"mesh": mesh, "axis_names": set(placement.manual), "check_vma": False}
    return jax.shard_map(local, in_specs=(whole, each), out_specs=whole, **options)(arrays, weights)


def _one_by_one(
    walk: Any, params: PyTree, rows: Rows, first: Index, weights: jax.Array, signs: int
) -> dict[int, jax.Array]:
    """Members that have rows of their own: a walk for each, at its own inputs, some at once."""
    members = len(weights)
    signed = weights
    if signs == 2:
        signs_of = (1 - 2 * (jnp.arange(members) % 2)).astype(weights.dtype)
        signed = weights * signs_of.reshape(-1, *[1] * (weights.ndim - 1))
    size = sum(x.size for x in jax.tree.leaves(params))
    at_once = max(d for d in range(1, members + 1) if members % d == 0 and (d == 1 or d * size <= AT_ONCE))

    def chunk(number: Index) -> dict[int, jax.Array]:
        start = number * at_once
        own = rows.of_members(first + start, at_once)
        chosen = lax.dynamic_slice_in_dim(signed, start, at_once)

        def one(member: Index, own: list[jax.Array], weight: jax.Array) -> dict[int, jax.Array]:
            return walk(params, rows.merged(own), member // signs, weight[None])

        sums = jax.vmap(one)(first + start + jnp.arange(at_once), own, chosen)
        return jax.tree.map(lambda x: x.sum(0), sums)

    if at_once == members:
        return chunk(0)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(chunk, 0))

    def add(total: Mapping[int, jax.Array], number: Index) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, dict(total), chunk(number)), None

    return lax.scan(add, zero, jnp.arange(members // at_once))[0]
