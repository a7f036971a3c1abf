"""Train neural networks without backpropagation: low-rank evolution strategies for any JAX function.

See `eggroll.ES`, `eggroll.value_and_grad`, `eggroll.explain`, `eggroll.factored`; `eggroll.nnx` for Flax NNX models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll import moved
from eggroll.lazy import lazy

moved.install()

if TYPE_CHECKING:
    from eggroll import engine as engine
    from eggroll import kernels as kernels
    from eggroll import llm as llm
    from eggroll import nnx as nnx
    from eggroll import rl as rl
    from eggroll import strategy as strategy
    from eggroll import training as training
    from eggroll.engine.factored import factored
    from eggroll.engine.interpreter import DenseFallback, DenseFallbackError, DenseFallbackWarning
    from eggroll.engine.lowrank import LowRank
    from eggroll.strategy.es import ES
    from eggroll.strategy.evaluate.recompiled import RecompilationWarning
    from eggroll.strategy.explain import Explanation, explain
    from eggroll.strategy.full_rank import FullRankES
    from eggroll.strategy.members import Members
    from eggroll.strategy.noise.fixed import FixedKeyWarning
    from eggroll.strategy.plan.rules import DenseRule, LowRankRule
    from eggroll.strategy.state import State
    from eggroll.strategy.value_and_grad import grad, value_and_grad
    from eggroll.version import __version__ as __version__

__all__ = [
    "ES",
    "DenseFallback",
    "DenseFallbackError",
    "DenseFallbackWarning",
    "DenseRule",
    "Explanation",
    "FixedKeyWarning",
    "FullRankES",
    "LowRank",
    "LowRankRule",
    "Members",
    "RecompilationWarning",
    "State",
    "explain",
    "factored",
    "grad",
    "value_and_grad",
]

# Names and the files that they come from, which are loaded when they are asked for: processes that only score
# answers, and `eggroll --help`, do without JAX.
_FILES = {
    "ES": "eggroll.strategy.es",
    "DenseFallback": "eggroll.engine.interpreter",
    "DenseFallbackError": "eggroll.engine.interpreter",
    "DenseFallbackWarning": "eggroll.engine.interpreter",
    "DenseRule": "eggroll.strategy.plan.rules",
    "Explanation": "eggroll.strategy.explain",
    "FixedKeyWarning": "eggroll.strategy.noise.fixed",
    "FullRankES": "eggroll.strategy.full_rank",
    "LowRank": "eggroll.engine.lowrank",
    "LowRankRule": "eggroll.strategy.plan.rules",
    "Members": "eggroll.strategy.members",
    "RecompilationWarning": "eggroll.strategy.evaluate.recompiled",
    "State": "eggroll.strategy.state",
    "explain": "eggroll.strategy.explain",
    "factored": "eggroll.engine.factored",
    "grad": "eggroll.strategy.value_and_grad",
    "value_and_grad": "eggroll.strategy.value_and_grad",
    "__version__": "eggroll.version",
}
_PACKAGES = (
    "eggroll.engine",
    "eggroll.kernels",
    "eggroll.llm",
    "eggroll.nnx",
    "eggroll.rl",
    "eggroll.strategy",
    "eggroll.training",
)

if not TYPE_CHECKING:  # a checker would take any name for one of the package
    __getattr__, __dir__ = lazy(__name__, _FILES, _PACKAGES)
