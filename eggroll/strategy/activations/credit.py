"""Credit: of which losses the noise of each row of a site is told."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.annotations import PyTree
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.interpreter import Policy
from eggroll.strategy.activations.sites import walked
from eggroll.strategy.activations.walk import Frame, Linear, Planned, Where
from eggroll.strategy.dependence.relations import Along, Relation, dependence
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.sites import Site

_FOUND: WeakKeyDictionary[Program, tuple[Relation | None, ...]] = WeakKeyDictionary()


class _Marked(Planned):
    """Adds an input of the traced function to every site, so that it can be followed to the losses."""

    def __init__(self, marks: Mapping[Where, Any]) -> None:
        self.marks = marks

    def site(self, made: Linear, frame: Frame) -> Any:
        mark = self.marks[made.where]
        for turn, length in frame.loops:
            if length is not None:
                mark = lax.dynamic_index_in_dim(mark, turn, 0, keepdims=False)
        return made.value + mark


def relations(program: Program, plan: Plan, params: PyTree, args: tuple) -> tuple[Relation | None, ...]:
    """Of every site of the plan, which losses depend on which of its rows; None where none does.

    Args:
        program: the function of one member, whose first output are losses.
        plan: its plan.
        params: the parameters, or their shapes.
        args: of one member, or their shapes.
    """
    if program in _FOUND:
        return _FOUND[program]
    leaves, merge, _ = partition((params, *args))

    def run(marks: list[Any], leaves: list[Any]) -> Any:
        hook = _Marked({site.where: mark for site, mark in zip(plan.sites, marks, strict=True)})
        out = walked(program, hook, Policy("allow"), merge(leaves), plan.by_output)[0]
        return jax.tree.leaves(out)[0]

    marks = [jax.ShapeDtypeStruct((*site.steps, *site.shape), site.dtype) for site in plan.sites]
    traced = jax.make_jaxpr(run)(marks, jax.tree.map(abstract, leaves))
    _FOUND[program] = tuple(dependence(traced, range(len(marks))))
    return _FOUND[program]


def credits(
    sites: Sequence[Site], found: Sequence[Relation | None], weights: jax.Array, credit: str, discount: float
) -> dict[Where, jax.Array]:
    """What every unit's noise is credited with, site by site.

    Args:
        sites: of a plan.
        found: their relations.
        weights: `[U, *losses]`, of each unit.
        credit: `"dependent"`: all losses that depend on a row; `"own"`: that of the same row and token.
        discount: factor on a loss for every token between it and the noise.

    Returns:
        Site → `[U, *axes]`, which broadcasts against `[U, *steps, *shape]`.
    """
    discount = 0.0 if credit == "own" else discount
    return {
        site.where: _credit(site, relation, weights, discount)
        for site, relation in zip(sites, found, strict=True)
        if relation is not None
    }


def _credit(site: Site, relation: Relation, weights: jax.Array, discount: float) -> jax.Array:
    """One einsum, from the digits of the losses' indices to those of the site's: merged axes have several."""
    shape, losses = (*site.steps, *site.shape), weights.shape[1:]
    used = _compatible(relation)
    given = [_cuts(n, [(a.loss_stride, a.loss_size) for k, a in used if k == axis]) for axis, n in enumerate(losses)]
    taken = [_cuts(n, [(a.stride, a.size) for _, a in used if a.axis == axis]) for axis, n in enumerate(shape)]
    letters = iter(string.ascii_letters)
    unit = next(letters)
    names = [{digit: next(letters) for digit in digits} for digits in given]
    own: dict[tuple[int, tuple[int, int]], str] = {}
    operands, terms = [], []
    for k, along in used:
        name, digit = names[k][along.loss_stride, along.loss_size], (along.axis, (along.stride, along.size))
        reach = _reach(along, discount, last=k == len(losses) - 1)
        if reach is None:
            own[digit] = name
            continue
        if (reach == 1).all():  # a sum, and no product: XLA reduces those with a constant of equal numbers wrongly
            continue
        own[digit] = next(letters)
        operands.append(jnp.asarray(reach, weights.dtype))
        terms.append(own[digit] + name)
    every = [(axis, digit) for axis, digits in enumerate(taken) for digit in digits]
    spelled = unit + "".join(name for each in names for name in each.values())
    split = weights.reshape(len(weights), *(size for digits in given for _, size in digits))
    kept = unit + "".join(own[digit] for digit in every if digit in own)
    total = jnp.einsum(",".join([spelled, *terms]) + "->" + kept, split, *operands, precision=lax.Precision.HIGHEST)
    total = total.reshape(len(weights), *(digit[1] if (axis, digit) in own else 1 for axis, digit in every))
    told = {axis for axis, _ in own}
    whole = [size if axis in told else 1 for axis, (_, size) in every]
    total = jnp.broadcast_to(total, (len(weights), *whole))
    return total.reshape(len(weights), *(n if axis in told else 1 for axis, n in enumerate(shape)))


def _compatible(relation: Relation) -> list[tuple[int, Along]]:
    """Links that can hold together: no two of the same losses, and none that cut an axis where another does not."""
    chosen: list[tuple[int, Along]] = []
    waiting = [(k, along) for k, along in enumerate(relation) if along is not None]
    while waiting:
        k, along = waiting.pop(0)
        waiting += [(k, other) for other in along.also]
        if along.size == 1 or along.loss_size == 1:  # tells nothing
            continue
        theirs = [(a.loss_stride, a.loss_size) for other, a in chosen if other == k]
        mine = [(a.stride, a.size) for _, a in chosen if a.axis == along.axis]
        apart = all(_apart(digit, (along.loss_stride, along.loss_size)) for digit in theirs)
        if apart and all(_apart(digit, (along.stride, along.size)) for digit in mine):
            chosen.append((k, along))
    return chosen


def _apart(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] * a[1] <= b[0] or b[0] * b[1] <= a[0]


def _cuts(length: int, digits: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """`(stride, size)` of all digits of an axis, the highest first: those given and what lies between."""
    ends = sorted({1, length, *(e for stride, size in digits for e in (stride, stride * size))})
    return [(low, high // low) for low, high in reversed(list(pairwise(ends)))] or [(1, length)]


def _reach(along: Along, discount: float, *, last: bool) -> np.ndarray | None:
    """`[size, loss_size]`, how much of each loss an index is credited with; None: its own alone."""
    if along.reach is None or along.own is None or discount == 1:
        return along.reach
    far = np.abs(np.arange(along.loss_size) - np.arange(along.size)[:, None] - along.own)
    if discount == 0:
        return far == 0
    return along.reach * discount**far if last else along.reach
