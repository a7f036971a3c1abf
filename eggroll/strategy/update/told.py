"""Fitness as users tell it: checks, and float64 on the host where float32 does not hold it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from eggroll.strategy.update.fitness import as_float


def check_fitness(fitness: Any, population: int, *, rows: bool = False) -> Any:
    """Fitness as an array `[population]` of real numbers.

    Args:
        fitness: JAX array (may be traced), numpy array, or a sequence of numbers.
        population: number of members.
        rows: whether a member may have several, `[population, *losses]`.

    Returns:
        The array, float32 or wider; float64 in NumPy where float32 does not hold its numbers, see `is_wide`.

    Raises:
        TypeError: not numbers, or complex ones.
        ValueError: another shape, an array that was deleted, or numbers beyond float64.
    """
    if any(map(_is_deleted, jax.tree.leaves(fitness))):
        raise ValueError(
            "got fitness that was deleted: its memory was donated to a compiled function (donate_argnums) or freed by "
            ".delete(). Tell before that, leave it out of the donated arguments, or keep a copy: np.asarray(fitness)."
        )
    if not isinstance(fitness, jax.Array) or _is_counted_here(fitness):
        fitness = _from_host(fitness)
    whole = rows and fitness.ndim > 1 and fitness.shape[0] == population and fitness.size > 0
    if fitness.shape != (population,) and not whole:
        raise ValueError(
            f"got fitness of shape {fitness.shape}; one number per member, shape ({population},), is required, in the "
            "order of the members. Average over data first where there are several numbers per member."
        )
    if not any(jnp.issubdtype(fitness.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"got fitness of dtype {fitness.dtype}; real numbers are required.")
    return as_float(fitness)


def _is_deleted(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted()


def _is_counted_here(fitness: jax.Array) -> bool:
    """Whether these are integers that float32 may not hold and that the host can read."""
    large = jnp.issubdtype(fitness.dtype, jnp.integer) and fitness.dtype.itemsize > 2
    return large and not isinstance(fitness, Tracer) and fitness.is_fully_addressable


def _from_host(fitness: Any) -> np.ndarray:
    """Real numbers in float64 where the 64-bit mode is on or float32 does not hold them, else in float32."""
    try:
        host = np.asarray(fitness)
        if host.dtype.kind in "USMm" or any(x is None or isinstance(x, str | bytes) for x in host.flat):
            raise TypeError("it has text, dates or None among its values")
        if host.dtype.names is not None or np.ma.is_masked(fitness):
            raise TypeError("it has fields by name" if host.dtype.names else "some of its values are masked")
        if np.iscomplexobj(host):
            return host
        with np.errstate(over="ignore"):
            wide = host if host.dtype in (np.float32, np.float64) else host.astype(np.float64)
    except OverflowError as why:  # an integer or a fraction
        raise ValueError(_beyond(fitness)) from why
    except (TypeError, ValueError) as why:
        raise TypeError(
            f"got fitness of type {type(fitness).__name__}, which is not an array of numbers ({why}); a score that is "
            "missing is float('nan')."
        ) from why
    _check_exact(host, wide)
    if wide.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow, wide, equal_nan=True) else wide


def _beyond(fitness: Any) -> str:
    return (
        f"got fitness of type {type(fitness).__name__} with numbers beyond float64, whose largest is 1.8e308: nothing "
        "there can be compared. Divide all of them by the same number, or take their logarithm."
    )


def _check_exact(host: np.ndarray, wide: np.ndarray) -> None:
    """Raises where finite numbers became infinite; warns where scores that differ became the same."""
    if host.dtype.kind not in "iuO" or not host.size:
        return
    if host.dtype.kind == "O":
        finite = [x for x in map(_exact, host.flat) if x is not None]
        if len(finite) > np.isfinite(wide).sum():
            raise ValueError(_beyond(host))
        exact = len(set(finite))
    else:
        exact = len(np.unique(host))
    told_apart = len(np.unique(wide[np.isfinite(wide)]))
    if told_apart < exact:
        warnings.warn(
            f"got fitness with {exact} different scores, of which float64 tells {told_apart} apart: members that "
            "differ count as equal. Subtract what all scores have in common before es.tell.",
            stacklevel=5,
        )


def _exact(x: Any) -> Any:
    """The number without rounding, as far as it says that; None where it is not finite."""
    try:
        return Fraction(x)
    except (OverflowError, ValueError):
        return None
    except TypeError:  # a number of another kind
        return near if math.isfinite(near := float(x)) else None


def is_wide(x: Any) -> bool:
    """Whether these are numbers of the host's that are float64 where JAX, without its 64-bit mode, has float32."""
    return x.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64


@contextmanager
def float64_on_host() -> Iterator[None]:
    """A context in which compiled functions compute in float64 on the host, whatever the devices and the trace.

    So wide fitness is centred and scaled by the code that serves every other.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to have no such backend
        host = None
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(host):
        yield


def beyond(numbers: np.ndarray, *, each: bool = False) -> Any:
    """Whether float32 does not reach up to any of these numbers, or to `each`."""
    found = np.abs(numbers) > np.finfo(np.float32).max
    return found if each else found.any()


def narrowed(x: Any) -> Any:
    """Wide numbers as updates and ledgers take them: in float32, those beyond its range as its largest."""
    if not is_wide(x):
        return x
    largest = np.finfo(np.float32).max
    return np.asarray(np.clip(x, -largest, largest), np.float32)


def check_weights(metrics: dict[str, Any], fitness: np.ndarray) -> None:
    """Raises FloatingPointError where shaping makes no weights in the range of float32 of wide fitness."""
    if beyond(metrics["weights"]) or (metrics["nonfinite"] == fitness.size and np.isfinite(fitness).any()):
        largest = np.abs(fitness[np.isfinite(fitness)]).max()
        raise FloatingPointError(
            f"got fitness as large as {largest:.3g}, of which the shaping makes weights beyond the range of float32, "
            'which updates have: nothing was updated. Use shaping="zscore" or "centered_rank", which do not depend on '
            "the scale, or divide the fitness by a number."
        )
