"""Trains a Flax NNX classifier on handwritten digits by evolution: forward passes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from eggroll.engine.annotations import PyTree
from eggroll.recipes.classifier import Classifier
from eggroll.recipes.data import digits, minibatches
from eggroll.recipes.models import build
from eggroll.recipes.run_folder import arrays_of
from eggroll.recipes.settings import Settings, SettingsError
from eggroll.strategy.es import ES
from eggroll.strategy.explain import explain
from eggroll.strategy.state import State
from eggroll.training.curve import Drawn, draw_curve
from eggroll.training.folder.arrays import save_arrays
from eggroll.training.folder.layout import CURVE, PARAMETERS
from eggroll.training.loop import fit
from eggroll.training.metrics import Record, read_before, read_metrics, write_before
from eggroll.training.optimizers import NamedOptimizer, named, schedule
from eggroll.training.progress import Shown
from eggroll.training.steps import Compiled
from eggroll.training.stopping import EarlyStopping
from eggroll.training.store import Saving

LAST_RATE = 0.02  # of the initial learning rate
SHOWN = Shown({"fitness_mean": "fitness {:.3f}", "test_accuracy": "accuracy {:.1%}"})


def strategy(settings: Settings) -> ES:
    """The evolution strategy of a run: Adam, its learning rate falling along a cosine."""

    def adam(first: float) -> NamedOptimizer:
        steps = {"decay_steps": settings.generations, "alpha": LAST_RATE}
        return named("adam", learning_rate=schedule("cosine_decay_schedule", init_value=first, **steps), b2=0.99)

    rate = settings.learning_rate
    return ES(
        population=settings.population,
        sigma=settings.sigma,
        rank=settings.rank,
        optimizer=(lambda rate: adam(2 * rate)) if isinstance(rate, str) else adam(rate),  # as it falls
        learning_rate=rate if isinstance(rate, str) else None,
        shaping=settings.shaping,
        distribution=settings.distribution,
        noise=settings.noise,
    )


class Task:
    """A network, its data, and the strategy that moves its parameters.

    Args:
        settings: see `Settings`.

    Attributes:
        es: the strategy.
        classifier: the network, taken apart.

    Raises:
        SettingsError: settings that the strategy, the model or the data cannot use.

    Example:
        >>> from eggroll.recipes.settings import settings_for
        >>> task = Task(settings_for("mlp", population=2, generations=1, batch_size=8))
        >>> images, labels = next(task.batches())
        >>> images.shape
        (8, 8, 8)
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._data = data = digits()
        rows = settings.noise == "activations"
        self.classifier = classifier = Classifier(build(settings.model, settings.seed), rows=rows)
        try:
            minibatches(len(data.train_labels), settings.batch_size, settings.seed)
            self.es = strategy(settings)
            # Says now, and not after compiling, that a rank does not fit the model.
            explain(
                classifier.fitness,
                classifier.params,
                classifier.state,
                data.train_images,
                data.train_labels,
                rank=settings.rank,
                noise=settings.noise,
            )
        except (TypeError, ValueError) as why:
            raise SettingsError(str(why)) from why

    def batches(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Images and labels of one minibatch after another, from the first."""
        data, settings = self._data, self._settings
        for chosen in minibatches(len(data.train_labels), settings.batch_size, settings.seed):
            yield jnp.asarray(data.train_images[chosen]), jnp.asarray(data.train_labels[chosen])

    def accuracy(self, params: PyTree, model_state: PyTree) -> float:
        """Share of the test images that the network, unperturbed, classifies rightly."""
        return self.classifier.accuracy(params, model_state, self._data.test_images, self._data.test_labels)

    def evaluate(self, state: State, model_state: PyTree) -> dict[str, float]:
        """What is added to some records of the metrics."""
        return {"test_accuracy": round(self.accuracy(state.params, model_state), 6)}


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: where it is written.
        before: test accuracy of the initial parameters, 0 to 1.
        after: test accuracy of the final ones.
        generations: updates made.
        resumed: the generation that the run went on from; 0 for one from the start.
        seconds: wall time of all generations, compilation included.
        ended: as in `eggroll.training.Result`.
    """

    folder: Path
    before: float
    after: float
    generations: int
    resumed: int
    seconds: float
    ended: str


def train(
    settings: Settings,
    *,
    show: Callable[[Record], None] = lambda record: None,
    asked_to_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Trains a network on the digits and writes the run folder.

    Args:
        settings: from `settings_for`.
        show: called with every line of the metrics, and first with the generation that it starts at.
        asked_to_stop: as in `eggroll.training.fit`.

    Returns:
        What came out. A run that is interrupted, or that finds no finite fitness, writes what there is just the same.

    Raises:
        RunError: settings that do not fit, or a folder that holds another run or cannot be written.
    """
    task = Task(settings)
    es, classifier, base = task.es, task.classifier, f"{settings.model}, seed {settings.seed}"
    before = task.accuracy(classifier.params, classifier.state)

    def started(generation: int) -> None:
        first = write_before(settings.folder, {"test_accuracy": round(before, 6)})
        show({"generation": generation} if generation else first)

    result = fit(
        es,
        es.init(classifier.params, jax.random.key(settings.seed)),
        Compiled(classifier.fitness, carries=True),
        task.batches(),
        **settings.of_fit(),
        carry=classifier.state,
        saving=Saving(**settings.of_saving(), score="test_accuracy", base=base, initial=True),
        evaluate=task.evaluate,
        early_stopping=EarlyStopping("test_accuracy", settings.patience) if settings.patience else None,
        started=started,
        show=show,
        asked_to_stop=asked_to_stop,
    )
    after = task.accuracy(result.state.params, result.carry)
    _write_results(settings, classifier.model(result.state.params, result.carry))
    return Outcome(settings.folder, before, after, result.generation, result.resumed, result.seconds, result.ended)


def _write_results(settings: Settings, model: nnx.Module) -> None:
    save_arrays(settings.folder / PARAMETERS, arrays_of(model))
    title = f"{settings.model} on handwritten digits, {settings.population} members, no backpropagation"
    records = [{"generation": 0, **read_before(settings.folder)}, *read_metrics(settings.folder)]
    draw_curve(records, settings.folder / CURVE, Drawn(title, "−cross-entropy"))
