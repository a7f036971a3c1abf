"""Raw fitness → weights of the members in the estimator `g = −1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ`.

Fitness is maximised. Every sum here runs over the valid members only, and the weights carry a factor
`N/n_valid`, which turns the estimator's `1/N` into `1/n_valid`. Population statistics are rounding-safe: a
constant fitness gives weights of exactly zero, and a nearly constant one is not drowned by the rounding of
its mean.

References:
    T. Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning",
    arXiv 1703.03864 (rank shaping, pairs).
    B. Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine.checks import as_count
from eggroll.strategy.update.fitness import Spread, centre, spreads

Shaping = str | Callable[[jax.Array], jax.Array]
AT_ONCE = 1 << 16  # numbers of fitness whose statistics are computed at once, where members have several


def validate_shaping(shaping: Shaping) -> None:
    """Raise unless `shaping` is a callable or one of `SHAPINGS`.

    Args:
        shaping: a name or a callable.

    Raises:
        ValueError: an unknown name, or neither a name nor a callable.

    Example:
        >>> validate_shaping("zscore")
    """
    if callable(shaping) or (isinstance(shaping, str) and shaping in SHAPINGS):
        return
    names = ", ".join(repr(name) for name in SHAPINGS)
    raise ValueError(f"got shaping={shaping!r:.80}; one of {names}, or a callable [N] -> [N], is required")


def shape_fitness(fitness: Any, *, shaping: Shaping, antithetic: bool, groups: int = 1) -> tuple[jax.Array, jax.Array]:
    """Turn the members' fitness into the estimator's weights.

    With `f̄` and `s` the mean and population standard deviation of the valid members' fitness `f`:

    - `"none"`: `f − f̄`; without pairs times `n_valid/(n_valid − 1)`. The estimator is then unbiased.
    - `"zscore"`: `(f − f̄)/s`.
    - `"group"`: `(f − mean of the member's own group)/s`.
    - `"centered_rank"`: the rank, ties averaged, scaled to `[−0.5, 0.5]`.
    - `"sign"`: with pairs `sign(f⁺ − f⁻)` for the first of a pair and its negative for the second; otherwise
      `sign(f − f̄)`.
    - a callable: `shaping(fitness)` as it is, not centred, where an invalid member's fitness reads `f̄`; 0 where all
      valid members have the same fitness: there is nothing to follow.

    Only `"group"` looks at groups; the others use the statistics of the whole population. All but `"none"`
    and a callable are unchanged when the fitness is shifted or multiplied by a positive number. A member
    whose fitness is not finite is invalid, with pairs its whole pair; it enters no statistic, and its weight
    is exactly 0.

    Args:
        fitness: `[N]` real numbers, higher is better. Floating point, integer or boolean; a JAX array, which
            may be traced, or host values. Values beyond the range of the result's dtype count as not finite.
        shaping: `"none"`, `"zscore"`, `"group"`, `"centered_rank"`, `"sign"` or a callable `[N] -> [N]`.
        antithetic: members `2i` and `2i + 1` are a pair with opposite perturbations.
        groups: the number of equal, contiguous blocks of members that are compared with one another.

    Returns:
        `(weights, valid)`: `[N]` float32 (float64 for float64 fitness) and `[N]` bool. With no valid member
        all weights are 0.

    Raises:
        TypeError: the fitness is not real, or the callable returned no floating-point array.
        ValueError: an unknown shaping; a fitness or callable's result of the wrong shape; an odd population
            with pairs; a population that `groups` does not divide; with `"group"`, groups of one member or
            that split pairs.

    Example:
        >>> weights, valid = shape_fitness([1.0, 3.0, float("nan"), 9.0], shaping="sign", antithetic=True)
        >>> weights.tolist(), valid.tolist()
        ([-2.0, 2.0, 0.0, 0.0], [True, True, False, False])
    """
    validate_shaping(shaping)
    fitness = _as_fitness(fitness)
    size = fitness.shape[0]
    _check_layout(size, shaping, antithetic, groups)
    valid = _valid(fitness, antithetic)
    found = spreads(fitness, valid)[1]
    fitness = jnp.where(valid, fitness, 0)
    count = jnp.maximum(found.summary.count, 1).astype(fitness.dtype)
    if isinstance(shaping, str):
        weights = SHAPINGS[shaping](fitness, valid, found, antithetic, groups)
    else:
        weights = _custom(shaping, fitness, valid, found)
    return jnp.where(valid, weights * (size / count), 0), valid


def shape_rows(fitness: Any, *, shaping: Shaping, antithetic: bool, groups: int = 1) -> tuple[jax.Array, jax.Array]:
    """`shape_fitness` of every loss by itself, where members have several.

    A loss that is not finite is left out, with pairs that of its pair, and the others count. `"zscore"` and `"group"`
    divide by one deviation for all, so that losses keep their sizes beside each other.

    Args:
        fitness: `[N]` or `[N, *losses]`.
        shaping: as in `shape_fitness`.
        antithetic: likewise.
        groups: likewise.

    Returns:
        `(weights, valid)`, `[N, *losses]` and `[N]`.
    """
    options: dict[str, Any] = {"antithetic": antithetic, "groups": groups}
    if fitness.ndim == 1:
        return shape_fitness(fitness, shaping=shaping, **options)
    flat = fitness.reshape(len(fitness), -1)
    common = shaping in ("zscore", "group")

    def one(column: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        weights, valid = shape_fitness(column, shaping=shaping, **options)
        found = spreads(column, valid)[1]
        return weights, valid, (found.deviation * found.unit)[0]

    several = jax.vmap(one, 1, (1, 1, 0))
    at_once = max(1, AT_ONCE // len(flat))
    if flat.shape[1] <= at_once:
        weights, valid, deviations = several(flat)
        valid = valid.any(1)
    else:
        weights, valid, deviations = _in_parts(several, flat, at_once)
    if common:
        deviation = jnp.sqrt(jnp.mean(deviations**2))
        weights = weights * (deviations / jnp.where(deviation > 0, deviation, 1))
    return weights.reshape(fitness.shape), valid


def _in_parts(several: Callable[..., Any], flat: jax.Array, at_once: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`several` of some losses after the other; the last part has some of the one before it once more."""
    members, losses = flat.shape
    like = jax.eval_shape(several, flat)[0].dtype

    def part(number: Any, made: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start = jnp.minimum(number * at_once, losses - at_once)
        weights, valid, deviations = several(lax.dynamic_slice_in_dim(flat, start, at_once, 1))
        placed = lax.dynamic_update_slice_in_dim(made[0], weights, start, 1)
        return placed, made[1] | valid.any(1), lax.dynamic_update_slice_in_dim(made[2], deviations, start, 0)

    empty = jnp.zeros(flat.shape, like), jnp.zeros(members, bool), jnp.zeros(losses, like)
    return lax.fori_loop(0, -(-losses // at_once), part, empty)


def _as_fitness(fitness: Any) -> jax.Array:
    if not isinstance(fitness, jax.Array):
        fitness = np.asarray(fitness)
    dtype = fitness.dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_):
        raise TypeError(f"got fitness of dtype {dtype}; real numbers are required; one per member")
    if fitness.ndim != 1 or fitness.shape[0] == 0:
        raise ValueError(
            f"got fitness of shape {fitness.shape}; shape [population] is required; reduce to one score per member"
        )
    # jnp.result_type(float) is float32 unless the 64-bit mode is on.
    target = jnp.result_type(float) if dtype == np.float64 else np.dtype(np.float32)
    with np.errstate(over="ignore"):
        return jnp.asarray(fitness.astype(target))


def _check_layout(size: int, shaping: Shaping, antithetic: bool, groups: int) -> None:
    if antithetic and size % 2:
        raise ValueError(
            f"got the fitness of {size} members; antithetic pairs need an even number; pass one score per "
            "member, or use antithetic=False"
        )
    if size % as_count("groups", groups):
        raise ValueError(
            f"got groups={groups!r} for {size} members; a positive divisor of the population is required; "
            "choose groups so that every group has the same number of members"
        )
    group_size = size // groups
    if shaping == "group" and (group_size == 1 or (antithetic and group_size % 2)):
        need = "an even number of members in each" if antithetic else "at least 2 members in each"
        raise ValueError(
            f"got groups={groups} for {size} members, {group_size} in each; shaping='group' needs {need}; "
            "use fewer groups or another shaping"
        )


def _valid(fitness: jax.Array, antithetic: bool) -> jax.Array:
    finite = jnp.isfinite(fitness)
    if not antithetic:
        return finite
    # Half a pair would leave its noise one-sided, and the baseline would no longer cancel.
    return jnp.repeat(finite.reshape(-1, 2).all(axis=1), 2)


def _none(fitness: jax.Array, valid: jax.Array, found: Spread, antithetic: bool, groups: int) -> jax.Array:
    centred = found.centred * found.unit
    if antithetic:
        return centred  # only f⁺ − f⁻ enters the estimator: the mean cancels and brings no bias
    # The mean holds the member's own fitness, which shrinks the estimate by (n − 1)/n. The factor undoes it:
    # the weight is fᵢ minus the mean of the other members (the leave-one-out baseline), which is independent
    # of member i's noise.
    count = found.summary.count.astype(fitness.dtype)
    return centred * (count / jnp.maximum(count - 1, 1))


def _group(fitness: jax.Array, valid: jax.Array, found: Spread, antithetic: bool, groups: int) -> jax.Array:
    centred, std = found.centred, found.deviation
    if groups > 1:
        centred = centre((fitness / found.unit).reshape(groups, -1), valid.reshape(groups, -1)).reshape(-1)
    return jnp.where(std > 0, centred / jnp.where(std > 0, std, 1), 0)


def _zscore(fitness: jax.Array, valid: jax.Array, found: Spread, antithetic: bool, groups: int) -> jax.Array:
    return _group(fitness, valid, found, antithetic, groups=1)


def _centered_rank(fitness: jax.Array, valid: jax.Array, found: Spread, antithetic: bool, groups: int) -> jax.Array:
    ordered = jnp.sort(jnp.where(valid, fitness, jnp.inf))  # invalid members behind every finite fitness
    below = jnp.searchsorted(ordered, fitness, side="left")
    not_above = jnp.searchsorted(ordered, fitness, side="right")
    # Tied members share the average of their ranks, (below + not_above − 1)/2, of 0 … n − 1. In integers up
    # to the division, so that a constant fitness gives exactly 0.
    count = valid.sum()
    twice = (below + not_above).astype(count.dtype) - count
    return twice.astype(fitness.dtype) / (2 * jnp.maximum(count - 1, 1)).astype(fitness.dtype)


def _sign(fitness: jax.Array, valid: jax.Array, found: Spread, antithetic: bool, groups: int) -> jax.Array:
    if not antithetic:
        return jnp.sign(found.centred)
    plus, minus = fitness[0::2], fitness[1::2]
    sign = (plus > minus).astype(fitness.dtype) - (plus < minus).astype(fitness.dtype)
    return jnp.stack([sign, -sign], axis=1).reshape(-1)


def _custom(
    shaping: Callable[[jax.Array], jax.Array], fitness: jax.Array, valid: jax.Array, found: Spread
) -> jax.Array:
    weights = shaping(jnp.where(valid, fitness, found.summary.mean))
    shape, dtype = getattr(weights, "shape", None), getattr(weights, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"the shaping returned {type(weights).__name__ if dtype is None else dtype}; a floating-point "
            f"array of shape {fitness.shape} is required; return one weight per member"
        )
    if shape != fitness.shape:
        raise ValueError(
            f"the shaping returned shape {shape} for fitness of shape {fitness.shape}; the same shape is "
            "required; return one weight per member"
        )
    return jnp.where(found.summary.high > found.summary.low, jnp.asarray(weights, dtype=fitness.dtype), 0)


SHAPINGS: dict[str, Callable[[jax.Array, jax.Array, Spread, bool, int], jax.Array]] = {
    "none": _none,
    "zscore": _zscore,
    "group": _group,
    "centered_rank": _centered_rank,
    "sign": _sign,
}
