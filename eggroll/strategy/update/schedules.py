"""Numbers that may change from generation to generation: sigma, and the learning rate of full-rank ES."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from eggroll.engine.annotations import Schedule
from eggroll.engine.checks import is_traced
from eggroll.strategy.update.fitness import as_float

Sigma = float | Schedule  # a number > 0, or one for every generation


def check_sigma(sigma: Any) -> None:
    """Raises unless sigma is a positive number (its value at generation 0, for a schedule)."""
    value: Any = sigma(0) if callable(sigma) else sigma
    if isinstance(value, Tracer):
        return
    number = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
    if not number or jnp.ndim(value) != 0 or not 0 < float(value) < float("inf"):
        raise ValueError(
            f"got sigma={value!r}; a finite number > 0, or an optax schedule of such numbers, is required. 0.01 to 0.1 "
            "times the size of a weight is sensible."
        )


def sigma_at(sigma: Sigma, generation: Any) -> Any:
    """Sigma of a generation: a Python float where the schedule gives a number, else a floating-point scalar.

    The barrier keeps the schedule's arithmetic apart from the update's: whoever knows only the value, as a ledger does,
    gets the same bits.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        value: Any = sigma(generation) if callable(sigma) else float(sigma)
    return jax.lax.optimization_barrier(as_float(value)) if isinstance(value, jax.Array) else float(value)


Rate = float | Schedule | None


def check_rate(rate: Any) -> Rate:
    """Raises unless the learning rate is None, a positive number, or a schedule that is not negative at first."""
    if rate is None:
        return None
    if callable(rate):
        schedule: Any = rate
        return schedule
    number = isinstance(rate, int | float | np.number | np.ndarray | jax.Array) and not isinstance(rate, bool)
    if not number or jnp.ndim(rate) != 0 or not 0 < float(rate) < float("inf"):
        raise ValueError(
            f"got learning_rate={rate!r}; a finite number > 0, an optax schedule, or None for half of sigma is "
            "required."
        )
    return float(rate)


def rate_at(rate: Rate, sigma: Any, generation: Any) -> Any:
    """The learning rate α of a generation: a Python float unless something is traced."""
    if rate is None:
        return sigma / 2
    if not callable(rate):
        return float(rate)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        if is_traced(generation):
            return as_float(jnp.asarray(rate(generation)))
        value: Any = rate(int(generation))
    return float(value)
