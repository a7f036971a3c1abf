"""Trains a Flax NNX classifier on handwritten digits by evolution: forward passes only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from eggroll.recipes.classifier import Classifier
from eggroll.recipes.curve import draw_curve
from eggroll.recipes.data import digits, minibatches
from eggroll.recipes.models import build
from eggroll.recipes.run_files import CURVE
from eggroll.recipes.run_folder import RunFolder, read_metrics
from eggroll.recipes.settings import Settings, SettingsError
from eggroll.strategy.es import ES
from eggroll.strategy.explain import explain

EVALUATE_EVERY = 10  # generations between two measurements of the test accuracy
LAST_RATE = 0.02  # of the initial learning rate
RECORDED = ("fitness_mean", "fitness_best", "fitness_worst", "fitness_std", "gradient_norm", "update_norm")


def strategy(settings: Settings) -> ES:
    """The evolution strategy of a run: Adam, its learning rate falling along a cosine."""
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.generations, alpha=LAST_RATE)
    return ES(
        population=settings.population,
        sigma=settings.sigma,
        rank=settings.rank,
        optimizer=optax.adam(rate, b2=0.99),
        shaping=settings.shaping,
        distribution=settings.distribution,
    )


class Training:
    """A run in the making: a network, its data, and the strategy that moves its parameters.

    Args:
        settings: see `Settings`.

    Attributes:
        generation: updates made so far.
        size: number of trained parameters.

    Raises:
        SettingsError: settings that the strategy, the model or the data cannot use.

    Example:
        >>> from eggroll.recipes.settings import settings_for
        >>> training = Training(settings_for("mlp", population=2, generations=1, batch_size=8))
        >>> record = training.step()
        >>> record["generation"], record["nonfinite"]
        (1, 0)
    """

    def __init__(self, settings: Settings) -> None:
        self._population = settings.population
        self._data = data = digits()
        self._classifier = classifier = Classifier(build(settings.model, settings.seed))
        self._model_state = classifier.state
        self._fitness = classifier.fitness  # one object for all generations, so that it is compiled once
        self.size = sum(x.size for x in jax.tree.leaves(classifier.params))
        self.generation = 0
        try:
            self._batches = minibatches(len(data.train_labels), settings.batch_size, settings.seed)
            self._es = strategy(settings)
            # Says now, and not after compiling, that a rank does not fit the model.
            explain(
                self._fitness,
                classifier.params,
                classifier.state,
                data.train_images,
                data.train_labels,
                rank=settings.rank,
            )
        except (TypeError, ValueError) as why:
            raise SettingsError(str(why)) from why
        self._state = self._es.init(classifier.params, jax.random.key(settings.seed))

    def step(self) -> dict[str, Any]:
        """Makes one generation and returns its record for the metrics, without times.

        Raises:
            FloatingPointError: no member has a finite fitness; nothing is updated.
        """
        chosen = next(self._batches)
        images, labels = self._data.train_images[chosen], self._data.train_labels[chosen]
        self._state, metrics = self._es.step(
            self._state, self._fitness, self._model_state, jnp.asarray(images), jnp.asarray(labels), has_aux=True
        )
        self._model_state = metrics["aux"]
        self.generation += 1
        numbers = {name: float(f"{float(metrics[name]):.6g}") for name in RECORDED}
        return {"generation": self.generation, **numbers, "nonfinite": int(metrics["nonfinite"])}

    def accuracy(self) -> float:
        """Share of the test images that the network, unperturbed, classifies rightly."""
        data = self._data
        return self._classifier.accuracy(self._state.params, self._model_state, data.test_images, data.test_labels)

    def model(self) -> nnx.Module:
        """The network as it stands, in evaluation mode."""
        return self._classifier.model(self._state.params, self._model_state)


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: where it is written.
        before: test accuracy of the initial parameters, 0 to 1.
        after: test accuracy of the final ones.
        generations: updates made.
        seconds: wall time of all generations, compilation included.
        ended: `"finished"`, `"interrupted"`, or what went wrong.
    """

    folder: Path
    before: float
    after: float
    generations: int
    seconds: float
    ended: str


def train(
    settings: Settings,
    *,
    show: Callable[[dict[str, Any]], None] = lambda record: None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Trains a network on the digits and writes the run folder.

    Args:
        settings: from `settings_for`.
        show: called with every line of the metrics, and first with the accuracy before as generation 0.
        asked_to_stop: asked after every generation; True ends the run early.

    Returns:
        What came out. A run that is interrupted, or that finds no finite fitness, writes what there is just the same.

    Raises:
        SettingsError: settings that do not fit, or a folder that cannot be written.
    """
    folder = RunFolder(settings.folder, overwrite=settings.overwrite)
    training = Training(settings)
    folder.start(options=settings.to_json(), parameters=training.size)
    before = training.accuracy()
    show({"generation": 0, "test_accuracy": before})
    start = time.perf_counter()
    try:
        ended = _run(training, settings, folder, show, asked_to_stop)
    except KeyboardInterrupt:
        ended = "interrupted"
    except FloatingPointError as why:
        ended = str(why)
    seconds = time.perf_counter() - start
    after = training.accuracy()
    folder.write_parameters(training.model())
    title = f"{settings.model} on handwritten digits, {settings.population} members, no backpropagation"
    draw_curve(read_metrics(folder.path), folder.path / CURVE, title=title)
    return Result(folder.path, before, after, training.generation, seconds, ended)


def _run(
    training: Training,
    settings: Settings,
    folder: RunFolder,
    show: Callable[[dict[str, Any]], None],
    asked_to_stop: Callable[[], bool],
) -> str:
    """Makes the generations; returns how they ended."""
    start = last = time.perf_counter()
    while training.generation < settings.generations:
        record = training.step()
        stopping = asked_to_stop()
        if stopping or training.generation in (1, settings.generations) or training.generation % EVALUATE_EVERY == 0:
            record["test_accuracy"] = round(training.accuracy(), 6)
        now = time.perf_counter()
        speed = settings.population / (now - last)
        record |= {"members_per_second": round(speed, 1), "seconds": round(now - start, 3)}
        last = now
        folder.log(record)
        show(record)
        if stopping:
            return "interrupted"
    return "finished"
