"""Observations brought to mean 0 and variance 1, by statistics of all live steps so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eggroll.engine.annotations import PyTree

CLIPPED = 10.0  # standard deviations from the mean, as in OpenAI's baselines
FLOOR = 1e-8  # under a variance: what never changed stays as it is


class Statistics(NamedTuple):
    """Of observations: floating-point sums, so that they average, resume and replay as any state does.

    Attributes:
        count: float32, live steps.
        mean: of every number of an observation.
        square: sum of its squared deviations from the mean.
    """

    count: Any
    mean: Any
    square: Any


class Sums(NamedTuple):
    """Of the steps of one generation: deviations from the mean before it, and their squares.

    Attributes:
        count: float32, live steps.
        deviations: their sum, for every number.
        squares: the sum of their squares.
    """

    count: Any
    deviations: Any
    squares: Any


def no_statistics(observation: PyTree) -> Statistics:
    """Before the first step, of observations of these shapes."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), observation)
    return Statistics(jnp.float32(0), zeros, zeros)


def no_sums(statistics: Statistics) -> Sums:
    """Before the first step of a generation."""
    zeros = jax.tree.map(jnp.zeros_like, statistics.mean)
    return Sums(jnp.float32(0), zeros, zeros)


def noted(sums: Sums, statistics: Statistics, observation: PyTree) -> Sums:
    """The sums after one more step."""
    away = jax.tree.map(jnp.subtract, observation, statistics.mean)
    deviations = jax.tree.map(jnp.add, sums.deviations, away)
    return Sums(sums.count + 1, deviations, jax.tree.map(lambda total, x: total + x * x, sums.squares, away))


def updated(statistics: Statistics, sums: Sums) -> Statistics:
    """The statistics after a generation.

    Example:
        >>> before = no_statistics(jnp.zeros(()))
        >>> after = updated(before, noted(noted(no_sums(before), before, jnp.float32(1)), before, jnp.float32(3)))
        >>> float(after.mean), float(after.square)
        (2.0, 2.0)
    """
    count = statistics.count + sums.count
    some = jnp.maximum(count, 1)
    moved = jax.tree.map(lambda x: x / some, sums.deviations)
    mean = jax.tree.map(jnp.add, statistics.mean, moved)
    # About the new mean: deviations from the old one, without what the mean has moved by.
    square = jax.tree.map(lambda old, new, d: old + new - some * d * d, statistics.square, sums.squares, moved)
    return Statistics(count, mean, jax.tree.map(lambda x: jnp.maximum(x, 0), square))


def normalised(statistics: Statistics, observation: PyTree) -> Any:
    """An observation, less the mean, over the standard deviation; as it is before the first generation."""

    def one(x: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
        variance = square / jnp.maximum(statistics.count, 1)
        scale = jnp.where(variance > FLOOR, jax.lax.rsqrt(jnp.maximum(variance, FLOOR)), 1.0)
        return jnp.where(statistics.count > 0, jnp.clip((x - mean) * scale, -CLIPPED, CLIPPED), x)

    return jax.tree.map(one, observation, statistics.mean, statistics.square)
