"""What a generation is made of: a step that evaluates a batch, in JAX or in Python."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from eggroll.engine.annotations import Function, Numbers, PyTree
from eggroll.strategy.evaluate.argnums import axes_after_shared
from eggroll.strategy.evaluate.averages import check_carried
from eggroll.strategy.evaluate.tracing import InAxes
from eggroll.strategy.members import Members
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State
from eggroll.training.data import Data, first_batch
from eggroll.training.errors import RunError
from eggroll.training.processes.scoring import Scores, score

LOGGER = logging.getLogger("eggroll")


class Step(ABC):
    """One generation. A subclass of one's own may do anything that ends in `ES.step` or `ES.tell`.

    Attributes:
        recorded: names of numbers that it adds to the metrics, and that are to be in the record of every generation.
    """

    recorded: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, es: Strategy, state: State, carry: PyTree, batch: tuple) -> tuple[State, PyTree, Metrics]:
        """From a state, what the model carries along and a batch, to the next ones and the metrics of `ES.tell`."""

    def fitness(self, members: Members, carry: PyTree, batch: tuple) -> Numbers:
        """The members' fitness, for settings that choose themselves."""
        raise RunError(
            f'{type(self).__name__} does not say what members are worth, by which settings that are "auto" are chosen; '
            "give it a method fitness(members, carry, batch), or the settings as numbers."
        )


class Compiled(Step):
    """A fitness in JAX: the whole generation is one compiled call.

    Args:
        fitness_fn: `fitness_fn(params, *batch)` → scalar fitness, maximised; with `carries`,
            `fitness_fn(params, carry, *batch)` → `(fitness, carry)`.
        carries: whether the model has state of its own, such as batch statistics, that goes from generation to
            generation; it is averaged over members, and integers in which members differ are refused. Default False.
        in_axes: for the batch, as in `ES.step`. Default None: all members see the same.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll
        >>> es = eggroll.ES(population=8, sigma=0.1)
        >>> state = es.init({"w": jnp.zeros(3)}, jax.random.key(0))
        >>> step = Compiled(lambda params, x: -jnp.sum((params["w"] - x) ** 2))
        >>> state, carry, metrics = step(es, state, (), (jnp.ones(3),))
        >>> int(state.generation)
        1
    """

    def __init__(self, fitness_fn: Function, *, carries: bool = False, in_axes: InAxes = None) -> None:
        self._fitness_fn, self._carries, self._in_axes = fitness_fn, carries, in_axes

    def __call__(self, es: Strategy, state: State, carry: PyTree, batch: tuple) -> tuple[State, PyTree, Metrics]:
        """One compiled generation."""
        if not self._carries:
            state, metrics = es.step(state, self._fitness_fn, *batch, in_axes=self._in_axes)
            return state, carry, metrics
        axes = axes_after_shared(self._in_axes, len(batch))
        state, metrics = es.step(state, self._fitness_fn, carry, *batch, in_axes=axes, has_aux=True)
        return state, check_carried(carry, metrics.pop("aux")), metrics

    def fitness(self, members: Members, carry: PyTree, batch: tuple) -> Numbers:
        """See `Step.fitness`."""
        if not self._carries:
            return members.apply(self._fitness_fn, *batch, in_axes=self._in_axes)
        axes = axes_after_shared(self._in_axes, len(batch))
        return members.apply(self._fitness_fn, carry, *batch, in_axes=axes)[0]


class Scored(Step):
    """A fitness in Python: members are evaluated in JAX, and what each returns is scored on the host.

    Args:
        fun: `fun(params, *batch)` → a pytree of arrays, any traceable function.
        scorer: `scorer(output, *batch)` → a number, maximised; `output` is one member's, in NumPy arrays. A scorer that
            raises gives that member no fitness: its pair is dropped, and `scorer_errors` in the metrics counts it, and
            the first such error is logged.
        in_axes: for the batch, as in `Members.apply`.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll
        >>> es = eggroll.ES(population=8, sigma=0.1)
        >>> state = es.init({"w": jnp.zeros(3)}, jax.random.key(0))
        >>> step = Scored(lambda params: params["w"] * 2, lambda output: float(output.sum()))
        >>> state, carry, metrics = step(es, state, (), ())
        >>> metrics["scorer_errors"]
        0
    """

    recorded = ("scorer_errors",)

    def __init__(self, fun: Function, scorer: Callable[..., float], *, in_axes: InAxes = None) -> None:
        self._fun, self._scorer, self._in_axes = fun, scorer, in_axes
        self._told = False  # of an error

    def __call__(self, es: Strategy, state: State, carry: PyTree, batch: tuple) -> tuple[State, PyTree, Metrics]:
        """One generation, scored on the host."""
        members = es.ask(state)
        scores = self._scores(members, batch)
        if scores.failed and not self._told:
            self._told = True  # later ones are in the metrics
            LOGGER.warning("the scorer raised for %d of %d members; %s", scores.failed, len(members), scores.error)
        state, metrics = es.tell(state, members, scores.fitness)
        return state, carry, {**metrics, "scorer_errors": scores.failed}

    def fitness(self, members: Members, carry: PyTree, batch: tuple) -> Numbers:
        """See `Step.fitness`."""
        return self._scores(members, batch).fitness

    def _scores(self, members: Members, batch: tuple) -> Scores:
        outputs = members.apply(self._fun, *batch, in_axes=self._in_axes)
        return score(outputs, lambda output: self._scorer(output, *batch))


def decided(es: Strategy, step: Step, state: State, carry: PyTree, data: Data) -> Data:
    """Has the strategy choose its settings that are `"auto"`, by the first batch; returns data that begin with it."""
    if es.undecided:
        batch, data = first_batch(data)
        es.choose(state, lambda members: step.fitness(members, carry, batch))
    return data
