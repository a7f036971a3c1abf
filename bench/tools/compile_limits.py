"""The plainest evolution that can be written: what no training step can do without, for `bench.compile` to compile.

Members with noise given as arguments, under one `vmap`; fitness times noise is added to the parameters. There are no
random numbers, pairs, chunks, shaping, optimizer or metrics.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import eggroll
from bench.tools.networks import Network

SIGMA, LEARNING_RATE = 0.01, 1e-3
MEMBERS = 4

Built = tuple[Any, tuple[Any, ...]]  # a jitted function and its arguments


def plainest(net: Network, members: int = MEMBERS) -> Built:
    """With dense noise, one array `[members, *shape]` a parameter."""

    def step(params: Any, noise: Any, *args: Any) -> Any:
        def member(own: Any) -> jax.Array:
            return net.fitness(jax.tree.map(lambda p, e: p + jnp.asarray(SIGMA, p.dtype) * e, params, own), *args)

        weights = LEARNING_RATE / (members * SIGMA) * jax.vmap(member)(noise)
        return jax.tree.map(lambda p, e: p + jnp.tensordot(weights.astype(p.dtype), e, 1), params, noise)

    noise = jax.tree.map(lambda p: jax.ShapeDtypeStruct((members, *p.shape), p.dtype), net.params)
    return jax.jit(step), (net.params, noise, *net.rows(1))


def plainest_low_rank(net: Network, members: int = MEMBERS) -> Built:
    """With factors of rank 1: a thin product and a correction beside each product, one product of factors an update."""
    rows = net.rows(1)
    plans = eggroll.explain(net.fitness, net.params, *rows).plan.leaves
    fitness, tree = eggroll.factored(net.fitness), jax.tree.structure(net.params)

    def step(params: Any, noise: Any, *args: Any) -> Any:
        values = jax.tree.leaves(params)

        def member(own: Any) -> jax.Array:
            return fitness(tree.unflatten(map(_seen, plans, values, own)), *args)

        weights = LEARNING_RATE / (members * SIGMA) * jax.vmap(member)(noise)
        return tree.unflatten([_moved(*each, weights) for each in zip(plans, values, noise, strict=True)])

    noise = [_shapes(plan, leaf, members) for plan, leaf in zip(plans, jax.tree.leaves(net.params), strict=True)]
    return jax.jit(step), (net.params, noise, *rows)


def _shapes(plan: Any, leaf: jax.Array, members: int) -> Any:
    """Of one parameter's noise: `(left, right)`, or dense."""
    sides = [(*plan.left_shape, 1), (*plan.right_shape, 1)] if plan.kind == "low_rank" else [leaf.shape]
    shapes = tuple(jax.ShapeDtypeStruct((members, *side), leaf.dtype) for side in sides)
    return shapes if len(shapes) > 1 else shapes[0]


def _seen(plan: Any, value: jax.Array, noise: Any) -> Any:
    """A parameter as one member sees it."""
    sigma = jnp.asarray(SIGMA, value.dtype)
    if plan.kind != "low_rank":
        return value + sigma * noise
    return eggroll.LowRank(value, noise[0], sigma * noise[1], plan.left_axes, plan.right_axes)


def _moved(plan: Any, value: jax.Array, noise: Any, weights: jax.Array) -> jax.Array:
    """A parameter after the update."""
    weights = weights.astype(value.dtype)
    if plan.kind != "low_rank":
        return value + jnp.tensordot(weights, noise, 1)
    member, rank = value.ndim, value.ndim + 1
    left, right = ([member, *axes, rank] for axes in (plan.left_axes, plan.right_axes))
    return value + jnp.einsum(weights, [member], noise[0], left, noise[1], right, list(range(value.ndim)))
