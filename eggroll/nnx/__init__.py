"""Flax NNX: `value_and_grad` and `grad` stand where theirs stood, `ES` trains a model with all of its state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll.lazy import lazy

if TYPE_CHECKING:
    from eggroll.nnx.es import ES, ModelMembers, ModelState
    from eggroll.nnx.gradient import explain, grad, value_and_grad

__all__ = ["ES", "ModelMembers", "ModelState", "explain", "grad", "value_and_grad"]

# Names and the files that they come from, which are loaded when they are asked for.
_FILES = {
    "ES": "eggroll.nnx.es",
    "ModelMembers": "eggroll.nnx.es",
    "ModelState": "eggroll.nnx.es",
    "explain": "eggroll.nnx.gradient",
    "grad": "eggroll.nnx.gradient",
    "value_and_grad": "eggroll.nnx.gradient",
}

if not TYPE_CHECKING:  # a checker would take any name for one of the package
    __getattr__, __dir__ = lazy(__name__, _FILES)
