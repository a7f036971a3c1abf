"""The estimator `g = −1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ`, summed in factored form, one product per parameter and chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.lowrank import accumulator_dtype
from eggroll.ops import Seeded, rank_update
from eggroll.strategy.noise.sampler import Noise
from eggroll.strategy.plan.leaves import LeafPlan, Plan


def zero_sums(plan: Plan) -> list[jax.Array | None]:
    """Accumulators, float32 or wider; None where nothing is perturbed."""
    return [
        jnp.zeros(leaf.shape, accumulator_dtype(leaf.dtype)) if leaf.kind in ("low_rank", "dense") else None
        for leaf in plan.leaves
    ]


def add_chunk(plan: Plan, sums: Sequence[Any], weights: jax.Array, noise: Noise) -> list[jax.Array | None]:
    """Adds Σ_p weights[p]·noise[p] of one chunk.

    Args:
        plan: what each parameter got.
        sums: accumulators from `zero_sums`.
        weights: `[P]`, one per unit; for a pair the difference w⁺ − w⁻.
        noise: of P units, from `Sampler.draw(..., for_update=True)`.

    Returns:
        The new accumulators.
    """
    return [_add(leaf, *rest) for leaf, *rest in zip(plan.leaves, sums, [weights] * len(sums), noise, strict=True)]


def _add(leaf: LeafPlan, total: Any, weights: jax.Array, noise: Any) -> Any:
    if leaf.kind == "low_rank":
        return total + _low_rank_sum(leaf, weights, *noise).astype(total.dtype)
    if leaf.kind == "dense":
        return total + jnp.tensordot(
            weights.astype(total.dtype), noise.astype(total.dtype), 1, precision=jax.lax.Precision.HIGHEST
        )
    return total


def _low_rank_sum(leaf: LeafPlan, weights: jax.Array, left: Any, right: Any) -> jax.Array:
    """`[*shape]`: a matrix of the stack each is one product of factors `[P, side, r]`; then the axes are put back."""
    stack = leaf.stack_axes
    rows = tuple(a for a in leaf.left_axes if a not in stack)
    cols = tuple(a for a in leaf.right_axes if a not in stack)
    if isinstance(left, Seeded):
        total = _sum_of_seeded(weights, left, right, len(stack))
    else:
        units = len(stack) + len(rows) + 1  # the left factor is [*stack, *rows, r, P]
        left = jnp.moveaxis(left, units, len(stack))
        update = rank_update
        for _ in stack:
            update = jax.vmap(update, in_axes=(None, 0, 0))
        total = update(weights, _as_matrices(left, len(stack)), _as_matrices(right, len(stack)))
    order = (*stack, *rows, *cols)
    total = total.reshape([leaf.shape[a] for a in order])
    return jnp.transpose(total, [order.index(a) for a in range(len(order))])


def _sum_of_seeded(weights: jax.Array, left: Seeded, right: Seeded, stacks: int) -> jax.Array:
    """The same for keys `[*stack, P, 2]`: one matrix after the other, each as large as a kernel likes it."""
    if not stacks:
        return rank_update(weights, left, right)
    keys = left.key.reshape(-1, *left.key.shape[stacks:]), right.key.reshape(-1, *right.key.shape[stacks:])

    def one(keys: tuple[jax.Array, jax.Array]) -> jax.Array:
        return rank_update(weights, replace(left, key=keys[0]), replace(right, key=keys[1]))

    return jax.lax.map(one, keys)


def _as_matrices(factor: jax.Array, stacks: int) -> jax.Array:
    """`[*stack, P, ..., r]` → `[*stack, P, side, r]`."""
    return factor.reshape(*factor.shape[: stacks + 1], -1, factor.shape[-1])


def descent(plan: Plan, sums: Sequence[Any], population: int, sigma: Any) -> list[jax.Array | None]:
    """The descent direction from the finished sums: the scale of `jax.grad`, the sign of a loss's gradient."""
    out = []
    for leaf, total in zip(plan.leaves, sums, strict=True):
        if total is None:
            out.append(None)
            continue
        # (1/N)·Σ w·E/σ with E = ABᵀ/√r: the √r below is E's, not the scale's.
        factor = -1.0 / (population * leaf.sigma_scale * sigma * (leaf.rank or 1) ** 0.5)
        out.append(total * jnp.asarray(factor, total.dtype))
    return out
