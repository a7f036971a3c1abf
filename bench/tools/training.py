"""Curves of one training run on the digits: by evolution, or by backpropagation with everything else the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

import eggroll
from eggroll.recipes.classifier import Classifier
from eggroll.recipes.data import digits, minibatches
from eggroll.recipes.models import build

Carry = Any  # what a method takes from one step to the next
LAST_RATE = 0.02  # of the initial learning rate, at the end of the cosine


@dataclass(frozen=True)
class Setting:
    """What is trained with; population, sigma, rank and distribution mean nothing to backpropagation.

    Attributes:
        method: `"evolution"` or `"backpropagation"`.
        distribution: of the noise.
        rank: columns of each noise factor.
        population: members in a generation.
        sigma: noise scale, in the units of the weights.
        learning_rate: Adam's at the start; it falls along a cosine to 2 % of that.
        generations: updates.
        batch_size: images in a minibatch; all methods see the same minibatches in the same order.
    """

    method: str = "evolution"
    distribution: str = "rademacher"
    rank: int = 1
    population: int = 1024
    sigma: float = 0.02
    learning_rate: float = 0.01
    generations: int = 40
    batch_size: int = 64

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam as the recipe uses it."""
        rate = optax.cosine_decay_schedule(self.learning_rate, self.generations, alpha=LAST_RATE)
        return optax.adam(rate, b2=0.99)


@dataclass(frozen=True)
class Point:
    """The unperturbed network after so many updates.

    Attributes:
        generation: updates made.
        seconds: of training alone: without compilation and without what it takes to measure this point.
        loss: mean cross entropy over all training images.
        accuracy: share of the test images that are classified rightly.
    """

    generation: int
    seconds: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        setting: what it was trained with.
        seed: decided parameters, noise and order of the data.
        compile_seconds: of the first call beyond a later one; about zero where another seed had compiled it.
        points: in order, the first before any update.
    """

    setting: Setting
    seed: int
    compile_seconds: float
    points: tuple[Point, ...]

    def at_seconds(self, seconds: float) -> Point:
        """The last point that was reached within so many seconds."""
        return [point for point in self.points if point.seconds <= seconds][-1]

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds of training until a point first had this test accuracy; None where none had."""
        return next((point.seconds for point in self.points if point.accuracy >= accuracy), None)


class Trainer:
    """Trains with one setting, for any number of seeds, and compiles once.

    Args:
        setting: see `Setting`.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._data = digits()
        self._graph = Classifier(build("mlp", 0))
        self._start, self._step, self._params = _METHODS[setting.method](setting, self._graph)
        self._loss = jax.jit(lambda params, images, labels: -_fitness(self._graph, params, images, labels))

    def run(self, seed: int, every: int) -> Curve:
        """Trains once and measures before, every so many updates, and after.

        Args:
            seed: decides parameters, noise and order of the data.
            every: updates between two points.
        """
        setting = self.setting
        batches = self._batches(seed)
        first, later = (self._seconds(self._fresh(seed), batches[:1])[1] for _ in range(2))  # compiles
        carry = self._fresh(seed)
        seconds, points = 0.0, [self._point(carry, 0, 0.0)]
        for done in range(0, setting.generations, every):
            carry, more = self._seconds(carry, batches[done : done + every])
            seconds += more
            points.append(self._point(carry, min(done + every, setting.generations), seconds))
        return Curve(setting, seed, max(0.0, first - later), tuple(points))

    def _fresh(self, seed: int) -> Carry:
        return self._start(Classifier(build("mlp", seed)).params, jax.random.key(seed))

    def _seconds(self, carry: Carry, batches: list[tuple[jax.Array, jax.Array]]) -> tuple[Carry, float]:
        start = time.perf_counter()
        for images, labels in batches:
            carry = self._step(carry, images, labels)
        jax.block_until_ready(self._params(carry))
        return carry, time.perf_counter() - start

    def _batches(self, seed: int) -> list[tuple[jax.Array, jax.Array]]:
        """The minibatches of all generations, on the device: fetching them is not what is compared."""
        data, setting = self._data, self.setting
        order: Iterator = minibatches(len(data.train_labels), setting.batch_size, seed)
        chosen = [next(order) for _ in range(setting.generations)]
        return [(jnp.asarray(data.train_images[c]), jnp.asarray(data.train_labels[c])) for c in chosen]

    def _point(self, carry: Carry, generation: int, seconds: float) -> Point:
        data, params = self._data, self._params(carry)
        loss = float(self._loss(params, data.train_images, data.train_labels))
        accuracy = self._graph.accuracy(params, self._graph.state, data.test_images, data.test_labels)
        return Point(generation, seconds, loss, accuracy)


def _fitness(graph: Classifier, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    return graph.fitness(params, graph.state, images, labels)[0]


def _evolution(setting: Setting, graph: Classifier) -> tuple[Callable, Callable, Callable]:
    es = eggroll.ES(
        population=setting.population,
        sigma=setting.sigma,
        rank=setting.rank,
        distribution=setting.distribution,
        optimizer=setting.optimizer,
    )

    def fitness(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return _fitness(graph, params, images, labels)

    return (
        es.init,
        lambda state, images, labels: es.step(state, fitness, images, labels)[0],
        lambda state: state.params,
    )


def _backpropagation(setting: Setting, graph: Classifier) -> tuple[Callable, Callable, Callable]:
    optimizer = setting.optimizer

    @jax.jit
    def step(carry: Carry, images: jax.Array, labels: jax.Array) -> Carry:
        params, opt_state = carry
        grads = jax.grad(lambda params: -_fitness(graph, params, images, labels))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return lambda params, key: (params, optimizer.init(params)), step, lambda carry: carry[0]


_METHODS = {"evolution": _evolution, "backpropagation": _backpropagation}


def tune(setting: Setting, rates: tuple[float, ...], seed: int) -> tuple[Setting, dict[float, float]]:
    """The setting with the learning rate that leaves the lowest training loss.

    Args:
        setting: its own learning rate is not tried unless it is among `rates`.
        rates: learning rates to try; one alone is taken untried.
        seed: of the trial runs; not one of those that are reported.

    Returns:
        The setting, and rate → final training loss.
    """
    if not rates:
        raise ValueError("got no learning rates; at least one is required.")
    if len(rates) == 1:
        return replace(setting, learning_rate=rates[0]), {}
    tried = {}
    for rate in rates:
        trial = replace(setting, learning_rate=rate)
        tried[rate] = Trainer(trial).run(seed, every=trial.generations).points[-1].loss
    best = min(tried, key=lambda rate: (tried[rate] != tried[rate], tried[rate]))  # a loss that is NaN comes last
    return replace(setting, learning_rate=best), tried
