"""The gradient from noise on the outputs of layers that write something turn by turn: each member at its own turns.

A member's answer is its own, so its inputs are, too: no pass without noise has them. Every member's answer is read once
more with the noise that it was written with, all turns at once and many members as rows of one pass; a site's noise `ε`
times the member's weight gives a parameter the transpose of its one operation at the inputs that the member had.

Given all noise before it, an output `z` of a layer is then drawn about `W x`: with normal noise of standard deviation
`s`, `Σ wᵢ·ε·xᵀ/s` is the policy gradient of the expected weight, without bias for any `s` and any weights, as greedy
decoding makes them, that jump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.engine.annotations import Index, PyTree, Scalar
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.interpreter import Policy
from eggroll.strategy.activations.noise import Retold
from eggroll.strategy.activations.sites import find_sites, walked
from eggroll.strategy.activations.streams import Streams
from eggroll.strategy.activations.walk import Where
from eggroll.strategy.evaluate.compiled import CompiledCache
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.sites import Site
from eggroll.strategy.population import Population
from eggroll.strategy.state import Placement

AT_ONCE = 512  # turns of all members that are read together, of one member if it has more


@runtime_checkable
class Writes(Protocol):
    """A function `fun(params, *args)` of one member that writes something in a loop of unknown length, turn by turn."""

    def __call__(self, params: PyTree, *args: Any) -> PyTree:
        """What the member writes; a turn of its loop `t` is turn `t` of `again`."""
        ...

    def wrote(self, outputs: PyTree) -> jax.Array:
        """`[R, T]` bool, which turns of members `[R]` have a part in what they wrote."""
        ...

    def again(self, params: PyTree, outputs: PyTree, *args: Any) -> PyTree:
        """The same operations on all turns of the members `[R]` at once.

        A layer's output of one turn, `[...]` with a last axis of its own, is here `[R, ..., T, ...]`.

        Args:
            params: as `fun` has them.
            outputs: what `fun` returned, `[R, ...]`.
            *args: as `fun` has them, `[R, ...]` where there is a row for each member.
        """
        ...


def check_writes(plan: Plan) -> None:
    """Raises ValueError unless all noise of a function that writes is on outputs in a loop of unknown length."""
    other = [leaf.path for leaf in plan.leaves if leaf.kind in ("low_rank", "dense")]
    if other:
        raise ValueError(
            f"got weight noise on {', '.join(other[:5])} beside noise on activations, for a function that writes turn "
            'by turn: members share their weights there. Freeze them: rules=[("PATTERN", "frozen")].'
        )
    for site in plan.sites:
        if not site.loops or site.loops[0] is not None:
            raise ValueError(f"got a site outside the loop that writes, {site.line}: call it through `noiseless`.")


def reading(
    cache: CompiledCache, fun: Writes, plan: Plan, params: PyTree, rows: Rows, outputs: PyTree, signs: int
) -> tuple[Program, Rows]:
    """`fun.again`, traced for as many members as are read at once, and the rows of all, outputs first.

    Args:
        cache: of programs.
        fun: the function that members wrote with.
        plan: of it.
        params: the parameters.
        rows: its other arguments.
        outputs: of all members, `[N, ...]`.
        signs: members of a unit, which are read together.

    Raises:
        ValueError: weight noise beside, or layers that `again` has not in the same order and shapes.
    """
    check_writes(plan)
    members, turns = jax.eval_shape(fun.wrote, outputs).shape
    units = members // signs
    most = max(1, AT_ONCE // (turns * signs))
    at_once = signs * max(d for d in range(1, units + 1) if units % d == 0 and (d == 1 or d <= most))
    axes = (0,) * len(partition(outputs)[0]) + rows.axes
    every = Rows((outputs, *rows.args), axes, rows.population)
    arrays, merge, _ = partition(every.abstract())
    shapes = [
        a if axis is None else jax.ShapeDtypeStruct((at_once, *a.shape), a.dtype)
        for a, axis in zip(map(abstract, arrays), axes, strict=True)
    ]
    args = merge(shapes)
    program = cache.program(fun.again, params, Rows(args, (None,) * len(axes), rows.population))
    _turn_axes(plan.sites, find_sites(program, params, args, plan.by_output)[0], at_once, turns)
    return program, every.arrays_alone()


def as_written(streams: Streams, written: Sequence[Site], read: Sequence[Site]) -> Streams:
    """The streams of the sites that were written with, at the same sites where they are read."""
    places = {found.where: streams.places[site.where] for site, found in zip(written, read, strict=True)}
    return replace(streams, places=places)


def _turn_axes(written: Sequence[Site], read: Sequence[Site], members: int, turns: int) -> dict[Where, int]:
    """The axis of the turns of every site that is read, which has the members in front.

    Raises:
        ValueError: not the same sites as were written with.
    """
    axes = {}
    for mine, theirs in zip_longest(written, read):
        fitting = []
        if mine and theirs and (mine.paths, mine.loops[1:]) == (theirs.paths, theirs.loops):
            ways = range(1, len(theirs.shape) - 1)
            fitting = [a for a in ways if _is_turn(mine.shape, theirs.shape, a, (members, turns))]
        if not (fitting and theirs):
            raise ValueError(
                f"got a function whose `again` has other layers than it writes with: {theirs} for {mine}. The same "
                f"outputs in the same order are required, with the {members} members along the first axis and the "
                f"{turns} turns along another."
            )
        axes[theirs.where] = fitting[0]
    return axes


def _is_turn(mine: tuple[int, ...], theirs: tuple[int, ...], axis: int, shape: tuple[int, int]) -> bool:
    """Whether `mine` is one turn of one member: the same numbers in the same order, and the same last axis."""
    rest = [n for i, n in enumerate(theirs) if i not in (0, axis) and n > 1]
    same = rest == [n for n in mine if n > 1] and mine[-1:] == theirs[-1:]
    return same and (theirs[0], theirs[axis]) == shape


def sum_written(
    population: Population,
    plan: Plan,
    program: Program,
    wrote: Any,
    key: jax.Array,
    sigma: Scalar,
    weights: jax.Array,
    params: PyTree,
    rows: Rows,
    placement: Placement | None,
) -> dict[int, jax.Array]:
    """What sites give their parameters, all members together.

    Args:
        population: who the members are.
        plan: of the function that wrote.
        program: of `again`, from `reading`.
        wrote: of the function.
        key: of the generation.
        sigma: noise scale.
        weights: `[N]`, shaped fitness of every member.
        params: the parameters.
        rows: of `reading`.
        placement: on a mesh, where things lie; refused.

    Returns:
        Number of the parameter → `Σ wᵢ·(its operation's transpose of εᵢ)`.
    """
    if placement is not None:
        raise ValueError("got a mesh for a function that writes under noise on activations: leave mesh out.")
    if weights.ndim != 1:
        raise ValueError(f"got fitness of shape {weights.shape}; one number for what each member wrote is required.")
    signs, members = population.signs, len(weights)
    at_once = jax.tree.leaves(program.out_shape)[0].shape[0]

    def part(first: Index) -> Mapping[int, jax.Array]:
        args = rows.merged(rows.of_members(first, at_once))
        credit = jnp.where(wrote(args[0]), lax.dynamic_slice_in_dim(weights, first, at_once)[:, None], 0)
        return read(first // signs, args, credit).sums

    def read(start: Index, args: tuple, credit: jax.Array) -> Any:
        sites = find_sites(program, params, args, plan.by_output)[0]
        streams = as_written(Streams.of(key, plan.sites, population.distribution, population.size), plan.sites, sites)
        axes = _turn_axes(plan.sites, sites, *credit.shape)
        hook = Retold(streams, start, signs, sigma, population.relative, credit, axes)
        return walked(program, hook, Policy("allow"), (params, *args), plan.by_output, summing=True)[1]

    if at_once == members:
        return dict(part(0))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, 0))

    def add(total: Any, number: Index) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(number * at_once)), None

    return lax.scan(add, zero, jnp.arange(members // at_once))[0]
