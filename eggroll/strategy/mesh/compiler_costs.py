"""What the parts of an update take by XLA's own cost analysis, of programs that are lowered and not compiled.

Each part is a program without a loop, which XLA counts in full: the draw of a few units, one chunk's product for each
shape, and the optimizer. A kernel says nothing of its cost, so products are counted as XLA would make them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eggroll.engine.lowrank import accumulator_dtype
from eggroll.ops import rank_update, threefry2x32
from eggroll.strategy.mesh.costs import CHANGE_OPERATIONS, MOMENTS, Figures, counted
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.plan.leaves import LeafPlan, Plan
from eggroll.strategy.update.optimizer import updates

UNITS = 32  # in a program: enough that a product's own operations are all that counts


def compiled(plan: Plan, distribution: str, optimizer: optax.GradientTransformationExtraArgs) -> Figures:
    """The compiler's figures; those counted by hand where it has none, as the compilers of some devices.

    Args:
        plan: by shapes.
        distribution: of the noise.
        optimizer: from `check_optimizer`.
    """
    by_hand = counted(distribution)
    drawn = Plan(tuple(replace(leaf, matrix=None) for leaf in plan.leaves if leaf.kind in ("low_rank", "dense")))
    change, moments = _optimizer(drawn, optimizer)
    return Figures(
        number=_number(_distinct(drawn), distribution) or by_hand.number,
        change=change,
        moments=moments,
        product=lambda leaf: _product(leaf.kind, *_sides(leaf)) or by_hand.product(leaf),
    )


def _distinct(plan: Plan) -> Plan:
    """One leaf for all that are alike but for their path: layers of a network."""
    return Plan(tuple({replace(leaf, path=""): leaf for leaf in plan.leaves}.values()))


@lru_cache(maxsize=64)
def _number(plan: Plan, distribution: str) -> float:
    """Operations for each number: of the words that it takes, and of making it from them."""
    if not plan.numbers:
        return 0.0
    sampler = Sampler(plan, distribution, None)
    width = sampler.streams.words
    some = jax.ShapeDtypeStruct((UNITS, width), np.uint32)
    words = _operations(_one_word, *[jax.ShapeDtypeStruct((UNITS,), np.uint32)] * 3) * width
    return (words + _operations(lambda words: sampler.draw(words, for_update=True), some)) / (UNITS * plan.numbers)


def _one_word(first: jax.Array, second: jax.Array, count: jax.Array) -> jax.Array:
    first, second = threefry2x32((first, second), (np.uint32(0), count))
    return first ^ second


@lru_cache(maxsize=1024)
def _product(kind: str, dtype: str, stack: int, rows: int, columns: int, rank: int) -> float:
    """Operations to add the noise of a unit to a stack of matrices: a chunk's product, and its share of the sum."""
    wide, shape = accumulator_dtype(dtype), jax.ShapeDtypeStruct
    weights = shape((UNITS,), wide)
    if kind == "dense":
        made = lambda total, w, noise: total + jnp.tensordot(w, noise, 1)  # noqa: E731
        noise = (shape((UNITS, rows), wide),)
        return _operations(made, shape((rows,), wide), weights, *noise) / UNITS
    update = jax.vmap(lambda w, a, b: rank_update(w, a, b, implementation="reference"), in_axes=(None, 0, 0))
    factors = (shape((stack, UNITS, side, rank), dtype) for side in (rows, columns))
    return _operations(lambda t, *x: t + update(*x), shape((stack, rows, columns), wide), weights, *factors) / UNITS


def _sides(leaf: LeafPlan) -> tuple[str, int, int, int, int]:
    """`(dtype, stack, rows, columns, rank)` as the update multiplies."""
    size = math.prod(leaf.shape)
    if leaf.kind != "low_rank":
        return leaf.dtype, 1, size, 1, 1
    stack = math.prod(leaf.shape[a] for a in leaf.stack_axes)
    left, right = (math.prod(side) // stack for side in (leaf.left_shape, leaf.right_shape))
    return leaf.dtype, stack, left, right, leaf.rank or 1


def _optimizer(plan: Plan, optimizer: optax.GradientTransformationExtraArgs) -> tuple[float, float]:
    """`(operations, numbers kept)` for each number of the parameters; Adam's where it cannot be told."""
    full = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, accumulator_dtype(leaf.dtype)) for leaf in plan.leaves}
    size = sum(math.prod(leaf.shape) for leaf in plan.leaves)
    try:
        state = jax.eval_shape(optimizer.init, full)
        made = _operations(lambda g, s, p: updates(optimizer, g, s, p, jnp.float32(0)), full, state, full)
    except Exception:  # one for parameters of another structure, or for none: `ES.init` says what is wrong
        return CHANGE_OPERATIONS, MOMENTS
    kept = sum(math.prod(x.shape) for x in jax.tree.leaves(state))
    return (made or CHANGE_OPERATIONS * size) / max(size, 1), kept / max(size, 1)


def _operations(fun: Callable[..., Any], *shapes: Any) -> float:
    """Additions, multiplications and functions of a program by XLA's count; 0 where it has none."""
    try:
        found = jax.jit(fun).lower(*shapes).cost_analysis() or {}
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return 0.0
    return float(found.get("flops", 0.0)) + float(found.get("transcendentals", 0.0))
