"""Credit: of which losses the noise of each row of a site is told."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import JaxprEqn, PyTree
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.interpreter import Policy
from eggroll.strategy.activations.dependence import Along, Relation, dependence
from eggroll.strategy.activations.sites import walked
from eggroll.strategy.activations.walk import Frame, Linear, Where
from eggroll.strategy.plan.leaves import Plan, Site

_FOUND: WeakKeyDictionary[Program, tuple[Relation | None, ...]] = WeakKeyDictionary()


class _Marked:
    """Adds an input of the traced function to every site, so that it can be followed to the losses."""

    def __init__(self, marks: Mapping[Where, Any]) -> None:
        self.marks = marks

    def site(self, made: Linear, frame: Frame) -> Any:
        mark = self.marks[made.where]
        for turn, length in frame.loops:
            if length is not None:
                mark = jax.lax.dynamic_index_in_dim(mark, turn, 0, keepdims=False)
        return made.value + mark

    def refused(self, made: Linear, frame: Frame, eqn: JaxprEqn | None) -> None:
        raise AssertionError(f"a parameter without a site at {eqn}")


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
    shape = (*site.steps, *site.shape)
    names = iter(string.ascii_lowercase)
    unit, losses = next(names), [next(names) for _ in relation]
    axes: dict[int, str] = {}
    operands: list[Any] = [weights]
    terms = [unit + "".join(losses)]
    for k, along in enumerate(relation):
        if along is None:
            continue
        reach = _reach(along, shape[along.axis], weights.shape[1 + k], discount)
        if reach is None and along.axis not in axes:
            axes[along.axis] = losses[k]
            continue
        name = axes.setdefault(along.axis, next(names))
        operands.append(jnp.asarray(np.eye(shape[along.axis]) if reach is None else reach, weights.dtype))
        terms.append(name + losses[k])
    kept = sorted(axes)
    spelled = ",".join(terms) + "->" + unit + "".join(axes[a] for a in kept)
    total = jnp.einsum(spelled, *operands, precision=jax.lax.Precision.HIGHEST)
    return jnp.expand_dims(total, [1 + a for a in range(len(shape)) if a not in axes])


def _reach(along: Along, rows: int, losses: int, discount: float) -> np.ndarray | None:
    """`[rows, losses]`, how much of each loss a row is credited with; None: its own alone."""
    if along.reach is None or not (along.own and rows == losses) or discount == 1:
        return along.reach
    if discount == 0:
        return None
    far = np.abs(np.arange(rows)[:, None] - np.arange(losses))
    return along.reach * discount**far
