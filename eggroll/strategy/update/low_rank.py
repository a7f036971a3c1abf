"""The estimator `g = −1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ`: sums in factored form, one product per parameter and chunk.

Chunk by chunk on one device, and in two layouts on a mesh.

By members, each device sums what its own members' noise adds to every weight, and the sums are added up across
`"population"`: an all-reduce of `4·m·n` bytes for a matrix. By weights, each device sums what all members add to its
part of every weight, drawing their noise itself: nothing crosses until the new weights are made whole again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from eggroll.engine.annotations import Function, Index, PyTree, Scalar
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.ops import Seeded, rank_update
from eggroll.strategy.evaluate.chunking import units_per_update
from eggroll.strategy.noise.sampler import Noise, Sampler
from eggroll.strategy.plan.leaves import LeafPlan, Plan
from eggroll.strategy.population import AXIS
from eggroll.strategy.state import Placement

SMALL = 1 << 19  # numbers of dense noise: on CPUs their sum takes as long as their product, of more twice as long
Held = Callable[[list[Any]], list[Any]]


def sum_noise(
    plan: Plan,
    sampler: Sampler,
    weights: jax.Array,
    words: jax.Array | None,
    key: jax.Array,
    start: Index,
    cut: Callable[[Sequence[Any]], Sequence[Any]] = lambda noise: noise,
    held: Held = lambda sums: sums,
) -> list[Any]:
    """Sums over units `start` to `start + U − 1`.

    Args:
        plan: what is summed; leaves that are neither low-rank nor dense are left out.
        sampler: draws the noise.
        weights: `[U]`, one per unit.
        words: `[U, W]`, of these units, or None to draw them.
        key: the generation's.
        start: the first unit.
        cut: takes the part of the noise that `plan` speaks of.
        held: holds the sums to their sharding.

    Returns:
        Per parameter the sum, or None.
    """

    def add(sums: list[Any], first: Index, count: int) -> list[Any]:
        noise = sampler.draw(sampler.words(key, words, start, first, count), for_update=True)
        chosen = lax.dynamic_slice_in_dim(weights, first, count)
        return held(add_chunk(plan, sums, chosen, cut(noise)))

    units = weights.shape[0]
    return fold_chunks(add, held(zero_sums(plan)), units, units_per_update(plan, units))


def sum_on_mesh(
    placement: Placement, sampler: Sampler, weights: jax.Array, words: jax.Array | None, key: jax.Array
) -> list[Any]:
    """The sums over all units on a mesh: of every parameter in the layout that its part says.

    Vectors and dense noise are summed by members in both layouts: their noise is as large as their sums.
    """
    plan, parts = sampler.plan, placement.parts
    apart = [p is not None and leaf.kind == "low_rank" for leaf, p in zip(plan.leaves, parts, strict=True)]
    sums: list[Any] = [None] * len(apart)
    for by_weights in (False, True):
        own = _only(plan, [a == by_weights for a in apart])
        if own.numbers:
            how = _by_weights if by_weights else _by_members
            part = how(placement, own, sampler, weights, words, key)
            sums = [b if a is None else a for a, b in zip(sums, part, strict=True)]
    return sums


def _by_members(
    placement: Placement, plan: Plan, sampler: Sampler, weights: jax.Array, words: jax.Array | None, key: jax.Array
) -> list[Any]:
    share = weights.shape[0] // placement.mesh.shape[AXIS]
    if words is None:
        sampler = replace(sampler, plan=plan)

    def local(weights: jax.Array, words: jax.Array | None, key: jax.Array) -> list[Any]:
        start = lax.axis_index(AXIS) * share
        sums = sum_noise(plan, sampler, weights, words, key, start, held=_held(placement, placement.specs))
        return lax.psum(sums, AXIS)

    each, whole = PartitionSpec(AXIS), PartitionSpec()
    return _mapped(placement, local, (each, each, whole), whole)(weights, words, key)


def _by_weights(
    placement: Placement, plan: Plan, sampler: Sampler, weights: jax.Array, words: jax.Array | None, key: jax.Array
) -> list[Any]:
    """The words that a device has kept are of its own members only: all are drawn anew."""
    devices = placement.mesh.shape[AXIS]
    # A kernel makes the noise of whole matrices.
    sampler = replace(sampler, plan=Plan(tuple(replace(leaf, matrix=None) for leaf in plan.leaves)))
    parts = [p if leaf.kind == "low_rank" else None for leaf, p in zip(plan.leaves, placement.parts, strict=True)]
    local_plan = Plan(tuple(_part_plan(leaf, p, devices) for leaf, p in zip(plan.leaves, parts, strict=True)))

    def local(weights: jax.Array, key: jax.Array) -> list[Any]:
        index = lax.axis_index(AXIS)

        def cut(noise: Sequence[Any]) -> list[Any]:
            each = zip(plan.leaves, noise, parts, strict=True)
            return [n if p is None else _cut(leaf, n, p, index, devices) for leaf, n, p in each]

        return sum_noise(local_plan, sampler, weights, None, key, 0, cut, _held(placement, placement.specs))

    whole = PartitionSpec()
    out = [whole if p is None else PartitionSpec(*[None] * p, AXIS) for p in parts]
    return _mapped(placement, local, (whole, whole), out)(weights, key)


def _only(plan: Plan, chosen: Sequence[bool]) -> Plan:
    """The plan with the chosen leaves; the others are not perturbed."""
    leaves = zip(plan.leaves, chosen, strict=True)
    return Plan(tuple(leaf if is_chosen else replace(leaf, kind="unused") for leaf, is_chosen in leaves))


def _part_plan(leaf: LeafPlan, part: int | None, devices: int) -> LeafPlan:
    """One device's part of a parameter."""
    if part is None:
        return leaf
    shape = tuple(n // devices if a == part else n for a, n in enumerate(leaf.shape))
    return replace(leaf, shape=shape, matrix=None)


def _cut(leaf: LeafPlan, noise: tuple[Any, Any], part: int, index: Index, devices: int) -> tuple[Any, Any]:
    """This device's part of both factors: left ones are `[*stack, *own, r, U]`, right ones `[*stack, U, *own, r]`."""
    size, stack = leaf.shape[part] // devices, leaf.stack_axes

    def one(factor: jax.Array, axes: tuple[int, ...], before: int) -> jax.Array:
        if part not in axes:
            return factor
        own = [a for a in axes if a not in stack]
        position = stack.index(part) if part in stack else len(stack) + before + own.index(part)
        return lax.dynamic_slice_in_dim(factor, index * size, size, position)

    return one(noise[0], leaf.left_axes, 0), one(noise[1], leaf.right_axes, 1)


def _held(placement: Placement, specs: Sequence[PartitionSpec]) -> Held:
    """Holds sums to the sharding of their parameters along the axes that the compiler splits."""
    if not placement.is_split:
        return lambda sums: sums

    def held(sums: list[Any]) -> list[Any]:
        mesh = jax.sharding.get_abstract_mesh()
        return [
            x if x is None else lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
            for x, spec in zip(sums, specs, strict=True)
        ]

    return held


def _mapped(placement: Placement, local: Function, in_specs: Any, out_specs: Any) -> Function:
    names = set(placement.manual)
    return jax.shard_map(
        local, mesh=placement.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names, check_vma=False
    )


def fold_chunks(step: Callable[[Any, Any, int], Any], carry: PyTree, n: int, size: int) -> PyTree:
    """`step(carry, first, count)` over whole chunks under scan, then over what is left."""
    whole = n // size
    if whole > 1:
        carry, _ = lax.scan(lambda c, i: (step(c, i * size, size), None), carry, jnp.arange(whole))
    else:
        carry = step(carry, 0, size)
    return step(carry, whole * size, n % size) if n % size else carry


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
        return total + _dense_sum(weights.astype(total.dtype), noise.astype(total.dtype))
    return total


def _dense_sum(weights: jax.Array, noise: jax.Array) -> jax.Array:
    """`[*shape]`: a product of a row with a matrix is a kernel to compile for each parameter, a sum is in a library."""
    if jax.default_backend() == "cpu" and noise.size <= SMALL:
        return jnp.sum(weights.reshape(-1, *[1] * (noise.ndim - 1)) * noise, 0)
    return jnp.tensordot(weights, noise, 1, precision=jax.lax.Precision.HIGHEST)


def _low_rank_sum(leaf: LeafPlan, weights: jax.Array, left: Any, right: Any) -> jax.Array:
    """`[*shape]`: a matrix of the stack each is one product of factors `[P, side, r]`; then the axes are put back."""
    if leaf.is_complex and jnp.iscomplexobj(left):  # the right factor is real
        return lax.complex(*(_low_rank_sum(leaf, weights, part, right) for part in (left.real, left.imag)))
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


def descent(plan: Plan, sums: Sequence[Any], population: int, sigma: Scalar) -> list[jax.Array | None]:
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
