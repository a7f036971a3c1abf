"""Train neural networks without backpropagation: low-rank evolution strategies for any JAX function.

See `eggroll.ES`, `eggroll.value_and_grad`, `eggroll.explain`, `eggroll.factored`; `eggroll.nnx` for Flax NNX models.
"""

from __future__ import annotations

import importlib
from typing import Any

from eggroll.engine.fallback import DenseFallback, DenseFallbackError, DenseFallbackWarning
from eggroll.engine.interpreter import factored
from eggroll.engine.lowrank import LowRank
from eggroll.strategy.es import ES
from eggroll.strategy.explain import Explanation, explain
from eggroll.strategy.gradient import grad, value_and_grad
from eggroll.strategy.members import Members
from eggroll.strategy.rules import DenseRule, LowRankRule
from eggroll.strategy.state import State

__all__ = [
    "ES",
    "DenseFallback",
    "DenseFallbackError",
    "DenseFallbackWarning",
    "DenseRule",
    "Explanation",
    "LowRank",
    "LowRankRule",
    "Members",
    "State",
    "explain",
    "factored",
    "grad",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    """`eggroll.nnx` without an import of its own; Flax is loaded when it is asked for."""
    if name == "nnx":
        return importlib.import_module("eggroll.nnx")
    raise AttributeError(f"module 'eggroll' has no attribute {name!r}")
