"""What a generation is made of: a batch of data, found again by a run that goes on, and a step that evaluates it."""

from __future__ import annotations

import base64
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from operator import length_hint
from typing import Any, Protocol

import jax

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import check_callback
from eggroll.strategy.evaluate.averages import check_carried
from eggroll.strategy.evaluate.tracing import InAxes
from eggroll.strategy.protocol import Metrics, Strategy
from eggroll.strategy.state import State
from eggroll.training.errors import RunError
from eggroll.training.processes.scoring import score

LOGGER = logging.getLogger("eggroll")

Position = Any  # JSON
Data = Iterable[object] | Callable[[int], object] | None  # what a user passes


class Source(Protocol):
    """Where batches come from."""

    def next(self) -> tuple:
        """The next batch, as arguments after the parameters; raises `StopIteration` at the end."""
        ...

    def position(self) -> Position:
        """Where the source is, as JSON."""
        ...

    def seek(self, position: Position) -> None:
        """Goes to where `position()` was asked for."""
        ...


def as_source(data: Data, epochs: int | None = 1) -> Source:
    """The source for what a user passes as data.

    Args:
        data: None, for a fitness without data; a function `data(generation) → batch`, generations counted from 0; an
            iterator with `get_state` and `set_state`, or an iterable of one, as Grain's data sets are; or any other
            iterable. A batch that is a tuple is several arguments, anything else one.
        epochs: passes over an iterable, at least 1; None: as many as are asked for. A pass is what a new iterator
            gives; a data set of Grain that has `repeat` is repeated by it, which shuffles every pass anew. Default 1.

    Returns:
        The source. A plain iterable finds its place again by being read from its start, all passes counted: let it be
        made anew for a resumed run, and always in the same order.

    Raises:
        RunError: none of these; or other epochs than 1 of an iterator or a generator, which cannot be started again,
            or, unless they are None, of what has no end.

    Example:
        >>> source = as_source([1, 2, 3], epochs=2)
        >>> [source.next() for _ in range(5)]
        [(1,), (2,), (3,), (1,), (2,)]
        >>> again = as_source([1, 2, 3], epochs=None)
        >>> again.seek(source.position())
        >>> again.next()
        (3,)
    """
    if isinstance(data, Iterable):
        if epochs != 1 and hasattr(data, "repeat") and hasattr(iter(data), "set_state"):
            return _Passes(_repeated(data, epochs), 1)
        return _Passes(data, epochs)
    if data is not None and not callable(data):
        raise RunError(
            f"got data of type {type(data).__name__}; None, an iterable of batches, or a function of the generation's "
            "number is required."
        )
    if epochs not in (1, None):
        raise RunError(
            f"got epochs={epochs} with {'no data' if data is None else 'data that are a function'}, which have no end; "
            "leave epochs out, or give an iterable of batches."
        )
    check_callback("data", data, "generation")
    return _ByGeneration(data or (lambda generation: ()))


def _repeated(data: Any, epochs: int | None) -> Any:
    try:
        return data.repeat(epochs)
    except ValueError as why:  # it has no end already
        if epochs is None:
            return data
        raise RunError(f"got epochs={epochs} with a data set that has no end ({why}). Leave epochs out.") from why


def length(data: Data) -> int | None:
    """How many batches there are, where that is known."""
    try:
        found = length_hint(data, -1)
    except Exception:  # of other libraries, which may not know how long they are
        return None
    return None if found < 0 else found


def outline(tree: PyTree) -> str:
    """The dtypes and shapes of a tree's arrays, and the types of its other leaves, in a line.

    Example:
        >>> outline((jax.numpy.zeros((5, 4)), "text"))
        'float32[5, 4], str'
    """
    leaves = jax.tree.leaves(tree)
    return ", ".join(f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__ for x in leaves)


def _arguments(batch: object) -> tuple:
    return batch if type(batch) is tuple else (batch,)


def _check_kind(position: Position, kind: type) -> None:
    """Raises for the position of data that keep a state of their own, where these do not, and the other way round."""
    if not isinstance(position, kind):
        now, then = ("a", "do not") if kind is dict else ("no", "do")
        raise RunError(
            f"got data that keep {now} state of their own; the run to resume was started with data that {then}. Resume "
            "it with the data that it was started with."
        )


class _ByGeneration:
    def __init__(self, data: Callable[[int], object]) -> None:
        self._data, self._generation = data, 0

    def next(self) -> tuple:
        self._generation += 1
        return _arguments(self._data(self._generation - 1))

    def position(self) -> Position:
        return self._generation

    def seek(self, position: Position) -> None:
        _check_kind(position, int)
        self._generation = position


class _Passes:
    """An iterable, pass after pass. Its iterators have a state of their own, or batches are counted."""

    def __init__(self, data: Iterable[object], epochs: int | None) -> None:
        self._data, self._epochs, self._iterator = data, epochs, iter(data)
        self._stateful = hasattr(self._iterator, "set_state")
        self._taken, self._passes, self._untouched = 0, 0, True
        if epochs != 1 and self._iterator is data:
            raise self._not_again("an iterator or a generator")

    def next(self) -> tuple:
        while True:
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._restart()
                continue
            self._taken, self._untouched = self._taken + 1, False
            return _arguments(batch)

    def _restart(self) -> None:
        """Begins the next pass; raises `StopIteration` if there is none to make."""
        if self._epochs is not None and self._passes + 1 >= self._epochs:
            raise StopIteration
        ended, self._iterator = self._iterator, iter(self._data)
        if self._untouched or self._iterator is ended:
            raise self._not_again(f"data without a batch in pass {self._passes + 1}")
        self._passes, self._untouched = self._passes + 1, True

    def _not_again(self, what: str) -> RunError:
        return RunError(
            f"got epochs={self._epochs} with {what}; data that can be started again are required, such as a list, a "
            "data set, or an object whose __iter__ is a generator function. Give such, or a function of the "
            "generation's number, or leave epochs out: one pass."
        )

    def position(self) -> Position:
        if not self._stateful:
            return self._taken
        state: Any = self._iterator.get_state()  # type: ignore[attr-defined]
        # JSON of `MapDataset` and `IterDataset`, bytes of `DataLoader`
        told = {"bytes": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"state": state}
        return told | ({"pass": self._passes} if self._passes else {})

    def seek(self, position: Position) -> None:
        _check_kind(position, dict if self._stateful else int)
        if self._stateful:
            self._go_to(position)
            return
        for _ in range(position - self._taken):
            try:
                self.next()
            except StopIteration:
                raise RunError(
                    f"got data that end after {self._taken} batches; the run to resume has taken {position}. Resume it "
                    "with the data, and at least the epochs, that it was started with."
                ) from None

    def _go_to(self, position: dict[str, Any]) -> None:
        self._passes, self._untouched = position.get("pass", 0), False
        if self._epochs is not None and self._passes >= self._epochs:
            raise RunError(
                f"got epochs={self._epochs}; the run to resume is in pass {self._passes + 1} of its data. Give at "
                "least so many."
            )
        state = base64.b64decode(position["bytes"]) if "bytes" in position else position["state"]
        self._iterator.set_state(state)  # type: ignore[attr-defined]


class Step(ABC):
    """One generation. A subclass of one's own may do anything that ends in `ES.step` or `ES.tell`.

    Attributes:
        recorded: names of numbers that it adds to the metrics, and that are to be in the record of every generation.
    """

    recorded: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, es: Strategy, state: State, carry: PyTree, batch: tuple) -> tuple[State, PyTree, Metrics]:
        """From a state, what the model carries along and a batch, to the next ones and the metrics of `ES.tell`."""


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
