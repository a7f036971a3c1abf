"""The models of the recipe under the evolution strategy: no dense weight, and every state passes through."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import eggroll
from eggroll.recipes.classifier import Classifier
from eggroll.recipes.data import digits
from eggroll.recipes.models import build
from eggroll.recipes.settings import Model
from tests.quick import quickest


def batch() -> tuple[jax.Array, jax.Array]:
    data = digits()
    return jnp.asarray(data.train_images[:4]), jnp.asarray(data.train_labels[:4])


@pytest.mark.parametrize("name", quickest(get_args(Model), "mlp", "cnn"))
def test_every_kernel_keeps_its_factors_apart(name: str) -> None:
    classifier = Classifier(build(name, seed=0))
    explained = eggroll.explain(classifier.fitness, classifier.params, classifier.state, *batch())
    kernels = [row for row in explained.rows if row.path.endswith("kernel")]
    assert kernels and all(row.kind == "low_rank" for row in kernels)
    assert explained.fallbacks == ()


@pytest.mark.first(1)
@pytest.mark.parametrize("name", get_args(Model))
def test_a_step_needs_no_dense_weight(name: str) -> None:
    classifier = Classifier(build(name, seed=0))
    es = eggroll.ES(population=2, fallback="error")
    members = es.ask(es.init(classifier.params, jax.random.key(0)))
    args = (classifier.state, *batch())
    fitness = jax.eval_shape(lambda: members.apply(lambda *a: classifier.fitness(*a)[0], *args))
    assert fitness.shape == (2,)


class WithDropout(nnx.Module):
    """A linear layer under dropout."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(64, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.dropout(self.dense(images.reshape(images.shape[0], -1)))


@pytest.mark.slow
def test_the_stream_of_dropout_masks_goes_on_from_step_to_step() -> None:
    classifier = Classifier(WithDropout())
    es = eggroll.ES(population=4)
    state, model_state, counts = es.init(classifier.params, jax.random.key(0)), classifier.state, []
    for _ in range(2):
        state, metrics = es.step(state, classifier.fitness, model_state, *batch(), has_aux=True)
        model_state = metrics["aux"]
        counts.append(int(model_state["dropout"]["rngs"]["count"][...]))
    assert counts == [1, 2]
    first, _ = classifier.fitness(state.params, classifier.state, *batch())
    second, _ = classifier.fitness(state.params, model_state, *batch())
    assert not np.array_equal(first, second)
