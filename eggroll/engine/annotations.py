"""Names of types that signatures share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.extend.core import JaxprEqn
from jax.typing import ArrayLike

__all__ = ["Chunk", "Flag", "Function", "Index", "JaxprEqn", "Json", "Numbers", "PyTree", "Scalar", "Schedule"]

PyTree: TypeAlias = Any  # nested containers with arrays at their leaves; JAX has no type for them
Function: TypeAlias = Callable[..., Any]  # of a user: which arguments it takes is the user's affair
Scalar: TypeAlias = float | jax.Array  # a number that may be traced
Flag: TypeAlias = bool | jax.Array  # likewise
Index: TypeAlias = int | np.integer | jax.Array  # likewise
Numbers: TypeAlias = jax.Array | np.ndarray | Sequence[float]
Schedule: TypeAlias = Callable[[Any], ArrayLike]  # of optax, over generations
Chunk: TypeAlias = int | Literal["auto"]
Json: TypeAlias = dict[str, Any]  # what a JSON object becomes
