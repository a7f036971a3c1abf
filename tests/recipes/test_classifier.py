"""The fitness and accuracy of a classifier, against NumPy."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from eggroll.recipes.classifier import Classifier

X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)


class Net(nnx.Module):
    """A normalised, dropped-out linear layer: every kind of state."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.drop(self.norm(x)))


def numbers(tree: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    keys = [jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.array(jax.random.key_data(x) if key else x) for x, key in zip(leaves, keys, strict=True)]


def test_fitness_is_the_negative_mean_cross_entropy() -> None:
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    classifier = Classifier(model)
    fitness, _ = classifier.fitness(classifier.params, classifier.state, X, Y)
    logits = X.astype(np.float64) @ np.asarray(model.kernel[...], np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fitness, np.log(probability[np.arange(7), Y]).mean(), rtol=1e-5)


def test_accuracy_is_the_share_of_right_answers() -> None:
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    classifier = Classifier(model)
    right = np.argmax(X @ np.asarray(model.kernel[...]), axis=1) == Y
    assert classifier.accuracy(classifier.params, classifier.state, X, Y) == right.mean()


def test_training_moves_the_state_and_nothing_moves_the_model_given() -> None:
    model = Net()
    classifier = Classifier(model)
    before = numbers((nnx.state(model), classifier.params, classifier.state))
    _, state = classifier.fitness(classifier.params, classifier.state, X, Y)
    moved = classifier.model(classifier.params, state)
    np.testing.assert_allclose(moved.norm.mean[...], 0.5 * X.mean(axis=0), rtol=1e-5, atol=1e-6)  # type: ignore[attr-defined]
    after = numbers((nnx.state(model), classifier.params, classifier.state))
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
    assert jax.tree.structure(state) == jax.tree.structure(classifier.state)


def test_dropout_and_batch_statistics_are_those_of_the_mode() -> None:
    classifier = Classifier(Net())
    params, state = classifier.params, classifier.state
    model = classifier.model(params, state)
    np.testing.assert_array_equal(model(X), model(X))  # type: ignore[operator]
    expected = X / np.sqrt(1 + 1e-5) @ np.asarray(model.head.kernel[...])  # type: ignore[attr-defined]
    np.testing.assert_allclose(model(X), expected, rtol=1e-5, atol=1e-6)  # type: ignore[operator]
    first, after = classifier.fitness(params, state, X, Y)
    second, _ = classifier.fitness(params, after, X, Y)
    assert first != second  # the stream of dropout masks went on
