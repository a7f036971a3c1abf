"""Batches of data, found again by a run that goes on."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterable, Mapping, Set
from operator import length_hint
from typing import Any, Protocol, TypeGuard

from eggroll.engine.checks import check_callback
from eggroll.training.errors import RunError

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
        RunError: none of these, or what iterates over names or letters (a dictionary, a text) or in no order (a set);
            other epochs than 1 of an iterator or a generator, which cannot be started again,
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
    if _has_batches(data):
        if epochs != 1 and hasattr(data, "repeat") and hasattr(iter(data), "set_state"):
            return _Passes(_repeated(data, epochs), 1)
        return _Passes(data, epochs)
    if data is not None and not callable(data):
        raise RunError(
            f"got data of type {type(data).__name__}; None, an iterable of batches in an order (no dictionary, set, "
            "text or single number), or a function of the generation's number is required."
        )
    if epochs not in (1, None):
        raise RunError(
            f"got epochs={epochs} with {'no data' if data is None else 'data that are a function'}, which have no end; "
            "leave epochs out, or give an iterable of batches."
        )
    check_callback("data", data, "generation")
    return _ByGeneration(data or (lambda generation: ()))


def _has_batches(data: object) -> TypeGuard[Iterable[object]]:
    """Whether iterating over it gives batches in an order: not names, letters, or an error."""
    return (
        isinstance(data, Iterable)
        and not isinstance(data, Mapping | Set | str | bytes)
        and getattr(data, "ndim", 1) != 0
    )


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


def _arguments(batch: object) -> tuple:
    return batch if type(batch) is tuple else (batch,)


def first_batch(data: Data) -> tuple[tuple, Data]:
    """The first batch, as arguments after the parameters, and data that begin with it still."""
    if not _has_batches(data):
        return as_source(data).next(), data
    try:
        if (iterator := iter(data)) is not data:
            return _arguments(next(iterator)), data
        state = data.get_state() if hasattr(data, "get_state") else None  # type: ignore[attr-defined]
        first = next(iterator)
    except StopIteration:
        raise RunError("got data without a batch; at least one is required.") from None
    if state is None:
        return _arguments(first), itertools.chain((first,), iterator)
    data.set_state(state)  # type: ignore[attr-defined]
    return _arguments(first), data


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
        passes, inner = position.get("pass", 0), position.keys() - {"pass"}
        if type(passes) is not int or passes < 0 or inner not in ({"bytes"}, {"state"}):
            raise RunError(f"got a place in the data that no run writes: {position!r:.60}. Bring the checkpoint back.")
        self._passes, self._untouched = passes, False
        if self._epochs is not None and self._passes >= self._epochs:
            raise RunError(
                f"got epochs={self._epochs}; the run to resume is in pass {self._passes + 1} of its data. Give at "
                "least so many."
            )
        state = base64.b64decode(position["bytes"]) if "bytes" in position else position["state"]
        self._iterator.set_state(state)  # type: ignore[attr-defined]
