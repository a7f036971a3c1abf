"""Fitness as it comes from users: checks, and the numbers that metrics report."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from eggroll.engine.checks import is_traced
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy.update.statistics import spreads


def check_fitness(fitness: Any, population: int) -> Any:
    """Fitness as an array `[population]` of real numbers.

    Args:
        fitness: JAX array (may be traced), numpy array, or a sequence of numbers.
        population: number of members.

    Returns:
        The array, float32 or wider.

    Raises:
        TypeError: not numbers, or complex ones.
        ValueError: another shape, or an array that was deleted.
    """
    if any(map(_is_deleted, jax.tree.leaves(fitness))):
        raise ValueError(
            "got fitness that was deleted: its memory was donated to a compiled function (donate_argnums) or freed by "
            ".delete(). Tell before that, leave it out of the donated arguments, or keep a copy: np.asarray(fitness)."
        )
    if not isinstance(fitness, jax.Array):
        fitness = _from_host(fitness)
    if fitness.shape != (population,):
        raise ValueError(
            f"got fitness of shape {fitness.shape}; one number per member, shape ({population},), is required, in the "
            "order of the members. Average over data first where there are several numbers per member."
        )
    if jnp.issubdtype(fitness.dtype, jnp.complexfloating):
        raise TypeError(f"got fitness of dtype {fitness.dtype}; real numbers are required.")
    return as_float(fitness)


def _is_deleted(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted()


def as_float(fitness: Any) -> Any:
    """Fitness as float32 or wider: counts can be averaged, and statistics are not rounded to half precision."""
    floating = jnp.issubdtype(fitness.dtype, jnp.floating)
    return fitness.astype(accumulator_dtype(fitness.dtype) if floating else jnp.float32)


def _from_host(fitness: Any) -> np.ndarray:
    try:
        host = np.asarray(fitness)
        if host.dtype.kind in "USMm" or any(x is None for x in host.flat):
            raise TypeError("it has text, dates or None among its values")
        if not np.iscomplexobj(host) and host.dtype.kind not in "fiub":
            host = host.astype(np.float64)
    except (TypeError, ValueError) as why:
        raise TypeError(
            f"got fitness of type {type(fitness).__name__}, which is not an array of numbers ({why}); a score that is "
            "missing is float('nan')."
        ) from why
    if np.iscomplexobj(host):
        raise TypeError(f"got fitness of dtype {host.dtype}; real numbers are required.")
    wide = host.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    with np.errstate(over="ignore"):  # beyond float32 is infinite: dropped and counted
        return host if wide else host.astype(np.float32)


def summary(fitness: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    """Mean, best, worst and standard deviation over finite fitness, and the number of members dropped.

    Args:
        fitness: `[N]`.
        valid: `[N]` bool, members that count in the update.

    Returns:
        Scalars by name; NaN where nothing is finite.
    """
    found, counted = spreads(fitness, valid)
    values = {
        "fitness_mean": found.summary.mean,
        "fitness_best": found.summary.high,
        "fitness_worst": found.summary.low,
        "fitness_std": found.deviation * found.unit,
    }
    some = found.summary.count > 0
    return {name: jnp.where(some, value, jnp.nan)[0] for name, value in values.items()} | {
        "nonfinite": fitness.size - counted.summary.count[0]
    }


def raise_if_lost(metrics: dict[str, Any], population: int) -> None:
    """Raises where a generation's metrics tell that nothing was updated; not under a trace.

    Raises:
        ValueError: sigma was not > 0.
        FloatingPointError: no fitness was finite.
    """
    if is_traced(metrics):
        return
    if not metrics["sigma"] > 0:
        raise ValueError(
            f"got sigma={float(metrics['sigma'])} from the schedule at generation {int(metrics['generation'])}; a "
            "number > 0 is required in every generation. Let the schedule end above zero."
        )
    if metrics["nonfinite"] == population:
        raise nothing_finite("fitness", population)


def nothing_finite(what: str, population: int) -> FloatingPointError:
    """The error for a generation of which nothing can be learned."""
    return FloatingPointError(
        f"got no finite {what} among {population} members (with antithetic pairs, a pair counts only when both are "
        f"finite): nothing was updated. Look at the {what} of the unperturbed parameters; if it is finite, lower sigma."
    )
