"""Sigma, the scale of the noise: what it may be, and its value in a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from eggroll.strategy.fitness import as_float


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


def sigma_at(sigma: float | Callable[[Any], Any], generation: Any) -> Any:
    """Sigma of a generation: a Python float where the schedule gives a number, else a floating-point scalar.

    The barrier keeps the schedule's arithmetic apart from the update's: whoever knows only the value, as a ledger does,
    gets the same bits.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        value = sigma(generation) if callable(sigma) else float(sigma)
    return jax.lax.optimization_barrier(as_float(value)) if isinstance(value, jax.Array) else float(value)
