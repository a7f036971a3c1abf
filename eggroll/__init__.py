"""Train neural networks without backpropagation: low-rank evolution strategies for any JAX function.

See `eggroll.ES`, `eggroll.value_and_grad`, `eggroll.explain`, `eggroll.factored`; `eggroll.nnx` for Flax NNX models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggroll.engine.fallback import DenseFallback, DenseFallbackError, DenseFallbackWarning
    from eggroll.engine.interpreter import factored
    from eggroll.engine.lowrank import LowRank
    from eggroll.strategy.es import ES
    from eggroll.strategy.explain import Explanation, explain
    from eggroll.strategy.full_rank import FullRankES
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
    "FullRankES",
    "LowRank",
    "LowRankRule",
    "Members",
    "State",
    "explain",
    "factored",
    "grad",
    "value_and_grad",
]

# Names and the files that they come from, which are loaded when they are asked for: processes that only score
# answers, and `eggroll --help`, do without JAX.
_FILES = {
    "ES": "strategy.es",
    "DenseFallback": "engine.fallback",
    "DenseFallbackError": "engine.fallback",
    "DenseFallbackWarning": "engine.fallback",
    "DenseRule": "strategy.rules",
    "Explanation": "strategy.explain",
    "FullRankES": "strategy.full_rank",
    "LowRank": "engine.lowrank",
    "LowRankRule": "strategy.rules",
    "Members": "strategy.members",
    "State": "strategy.state",
    "explain": "strategy.explain",
    "factored": "engine.interpreter",
    "grad": "strategy.gradient",
    "value_and_grad": "strategy.gradient",
}
_PACKAGES = ("engine", "kernels", "llm", "nnx", "strategy", "training")


def __getattr__(name: str) -> Any:
    """A public name, or a package such as `eggroll.nnx` without an import of its own."""
    if name in _FILES:
        value = getattr(importlib.import_module(f"eggroll.{_FILES[name]}"), name)
        globals()[name] = value  # found at once from now on
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"eggroll.{name}")
    raise AttributeError(f"module 'eggroll' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
