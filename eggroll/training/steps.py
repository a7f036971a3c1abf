"""What a generation evaluates: a JAX function of the parameters, or a Python scorer of what one returns."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import check_function
from eggroll.strategy.evaluate.averages import check_carried
from eggroll.strategy.evaluate.tracing import InAxes
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State, check_state
from eggroll.training.processes.scoring import score

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


def check_given(
    es: object, state: object, fitness: object, callbacks: Mapping[str, object], *options: tuple[object, type]
) -> None:
    """Raises TypeError unless `fit` has a strategy, a state and a fitness, and all else it was given is of its kind."""
    usage = "fit(es, state, fitness, data, generations=...)"
    if not isinstance(es, Strategy):
        raise TypeError(f"got {type(es).__name__} as the strategy; an eggroll.ES or FullRankES is required: {usage}.")
    check_state(state)
    if not isinstance(fitness, Step):
        check_function("fitness", fitness, usage)
    for name, fun in callbacks.items():
        if fun is not None and not callable(fun):
            raise TypeError(f"got {type(fun).__name__} as {name}; a function that `fit` calls is required, or None.")
    for value, kind in options:
        if not isinstance(value, kind | None):
            raise TypeError(f"got {type(value).__name__} where `fit` takes a {kind.__name__} or None.")


def check_made(made: object, names: Iterable[str]) -> None:
    """Raises TypeError unless a step returned a state, what is carried along, and metrics of these names."""
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], State) and isinstance(made[2], Mapping)):
        got = f"({', '.join(type(x).__name__ for x in made)})" if isinstance(made, tuple) else type(made).__name__
        raise TypeError(
            f"got {got} from the step; (state, carry, metrics) is required: the State and the metrics that es.step or "
            "es.tell returned, and between them what the model carries along, () for nothing."
        )
    missing = sorted(set(names) - made[2].keys())
    if missing:
        raise TypeError(
            f"got metrics without {', '.join(missing)} from the step; those that es.step or es.tell returned are "
            "required, with the step's own (Step.recorded) added."
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
        axes = self._in_axes if isinstance(self._in_axes, tuple) else (self._in_axes,) * len(batch)
        state, metrics = es.step(state, self._fitness_fn, carry, *batch, in_axes=(None, *axes), has_aux=True)
        return state, check_carried(carry, metrics.pop("aux")), metrics


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
        outputs = members.apply(self._fun, *batch, in_axes=self._in_axes)
        scores = score(outputs, lambda output: self._scorer(output, *batch))
        if scores.failed and not self._told:
            self._told = True  # later ones are in the metrics
            LOGGER.warning("the scorer raised for %d of %d members; %s", scores.failed, len(members), scores.error)
        state, metrics = es.tell(state, members, scores.fitness)
        return state, carry, {**metrics, "scorer_errors": scores.failed}
