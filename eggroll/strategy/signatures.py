"""Types of what `value_and_grad` and its kin take and return, for those who pass options on."""

from __future__ import annotations

from typing import Any, Protocol, Required, TypedDict, TypeVar

import jax
from jax.sharding import Mesh

from eggroll.engine.annotations import Chunk, PyTree
from eggroll.engine.fallback import Fallback
from eggroll.strategy.evaluate.inputs import InAxes
from eggroll.strategy.mesh.sharding import Sharding
from eggroll.strategy.plan.rules import Rules
from eggroll.strategy.update.shaping import Shaping

Params = TypeVar("Params")
Out = TypeVar("Out", covariant=True)


class GradientOptions(TypedDict, total=False):
    """Options of `eggroll.value_and_grad` and `eggroll.grad` but `has_aux`, which decides what they return."""

    population: Required[int]
    sigma: Required[float]
    rank: int
    antithetic: bool
    distribution: str
    shaping: Shaping
    rules: Rules
    chunk: Chunk
    mesh: Mesh | None
    sharding: Sharding
    in_axes: InAxes
    groups: int
    fallback: Fallback


class ModelOptions(GradientOptions, total=False):
    """Options of `eggroll.nnx.value_and_grad` and `eggroll.nnx.grad` but `has_aux`."""

    wrt: Any  # a filter of NNX
    share_rngs: bool


class ExplainOptions(TypedDict, total=False):
    """Options of `eggroll.explain`."""

    rank: int
    rules: Rules
    in_axes: InAxes
    population: int | None
    distribution: str


class ValueAndGrad(Protocol):
    """What `value_and_grad` returns."""

    def __call__(self, params: Params, *args: Any, key: jax.Array, **kwargs: Any) -> tuple[jax.Array, Params]:
        """Loss and gradient."""
        ...


class ValueAuxAndGrad(Protocol):
    """What `value_and_grad` returns with `has_aux`."""

    def __call__(
        self, params: Params, *args: Any, key: jax.Array, **kwargs: Any
    ) -> tuple[tuple[jax.Array, PyTree], Params]:
        """Loss with auxiliary output, and gradient."""
        ...


class Grad(Protocol):
    """What `grad` returns."""

    def __call__(self, params: Params, *args: Any, key: jax.Array, **kwargs: Any) -> Params:
        """The gradient."""
        ...


class GradAux(Protocol):
    """What `grad` returns with `has_aux`."""

    def __call__(self, params: Params, *args: Any, key: jax.Array, **kwargs: Any) -> tuple[Params, PyTree]:
        """Gradient and auxiliary output."""
        ...


class OfModel(Protocol[Out]):
    """What their namesakes for NNX models return."""

    def __call__(self, model: Any, *args: Any, key: jax.Array, **kwargs: Any) -> Out:
        """Of the model's state."""
        ...
