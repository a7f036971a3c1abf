"""Names of types that signatures share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var
from jax.extend.core import Jaxpr as OpenJaxpr
from jax.extend.core import Literal as Constant
from jax.typing import ArrayLike

__all__ = ["Atom", "Chunk", "Flag", "Function", "Index", "Jaxpr", "JaxprEqn", "Json", "Numbers", "OpenJaxpr", "PyTree"]
__all__ += ["Scalar", "Schedule", "Var"]

PyTree: TypeAlias = Any  # nested containers with arrays at their leaves; JAX has no type for them
Function: TypeAlias = Callable[..., Any]  # of a user: which arguments it takes is the user's affair
Scalar: TypeAlias = float | jax.Array  # a number that may be traced
Flag: TypeAlias = bool | jax.Array  # likewise
Index: TypeAlias = int | np.integer | jax.Array  # likewise
Numbers: TypeAlias = jax.Array | np.ndarray | Sequence[float]
Schedule: TypeAlias = Callable[[Any], ArrayLike]  # of optax, over generations
Chunk: TypeAlias = int | Literal["auto"]
Jaxpr: TypeAlias = OpenJaxpr | ClosedJaxpr  # one type from JAX 0.12 on
Atom: TypeAlias = Var | Constant  # what an equation reads
Json: TypeAlias = dict[str, Any]  # what a JSON object becomes
