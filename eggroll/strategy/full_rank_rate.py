"""The learning rate of full-rank ES: what it may be, and its value in a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.checks import is_traced
from eggroll.strategy.fitness import as_float

Rate = float | Callable[[Any], Any] | None


def check_rate(rate: Any) -> Rate:
    """Raises unless the learning rate is None, a positive number, or a schedule that is not negative at first."""
    if rate is None or callable(rate):
        return rate
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
    if is_traced(generation):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
            return as_float(jnp.asarray(rate(generation)))
    with jax.numpy_dtype_promotion("standard"):
        return float(rate(int(generation)))
