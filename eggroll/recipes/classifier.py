"""A Flax NNX classifier taken apart into what an evolution strategy needs: parameters, other state, fitness."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from eggroll.engine.annotations import PyTree


class Classifier:
    """Parameters, state and pure functions of an NNX classifier.

    Attributes:
        params: the trained variables (`nnx.Param`).
        state: all other variables: batch statistics, RNG streams, caches.

    Args:
        model: any NNX module that maps inputs `[batch, ...]` to logits `[batch, classes]`. It is left as it is.
        rows: whether fitness is one number for each input, as noise on activations asks, and not their mean.

    Example:
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> classifier = Classifier(model)
        >>> x, y = jnp.ones((3, 4)), jnp.zeros(3, jnp.int32)
        >>> fitness, state = classifier.fitness(classifier.params, classifier.state, x, y)
        >>> bool(fitness < 0)
        True
    """

    def __init__(self, model: nnx.Module, *, rows: bool = False) -> None:
        graphdef, params, state = nnx.split(model, nnx.Param, ...)
        training, evaluating = nnx.merge(graphdef, params, state), nnx.merge(graphdef, params, state)
        training.train()
        evaluating.eval()
        self.params, self.state, self._rows = params, state, rows
        self._training, self._evaluating = nnx.graphdef(training), nnx.graphdef(evaluating)
        self._right = jax.jit(self._count_right)

    def fitness(self, params: PyTree, state: Any, inputs: Any, labels: Any) -> tuple[jax.Array, Any]:
        """Negative cross entropy in training mode, the mean or `[batch]`, and the state as the model leaves it."""
        # A copy, because outside jit the model would write its new state into the variables of `state`.
        model = nnx.merge(self._training, params, state, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels)
        return -losses if self._rows else -losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

    def accuracy(self, params: PyTree, state: Any, inputs: Any, labels: Any) -> float:
        """Share of right answers in evaluation mode, 0 to 1."""
        return int(self._right(params, state, inputs, labels)) / len(labels)

    def model(self, params: PyTree, state: Any) -> nnx.Module:
        """The module again, in evaluation mode."""
        return nnx.merge(self._evaluating, params, state, copy=True)

    def _count_right(self, params: PyTree, state: Any, inputs: Any, labels: Any) -> jax.Array:
        logits = self.model(params, state)(inputs)  # type: ignore[operator]
        return jnp.sum(jnp.argmax(logits, axis=-1) == labels)
