"""Data for a run: any iterator, and the way back to the place where a stopped run was."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any, Protocol

import jax

from eggroll.engine.annotations import PyTree
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


def as_source(data: Data) -> Source:
    """The source for what a user passes as data.

    Args:
        data: None, for a fitness without data; a function `data(generation) → batch`, generations counted from 0; an
            iterator with `get_state` and `set_state`, or an iterable of one, as Grain's data sets are; or any other
            iterable. A batch that is a tuple is several arguments, anything else one.

    Returns:
        The source. A plain iterable finds its place again by being read from its start: let it be made anew for a
        resumed run, and always in the same order.

    Raises:
        RunError: none of these.

    Example:
        >>> source = as_source([1, 2, 3])
        >>> _ = source.next(), source.next()
        >>> again = as_source([1, 2, 3])
        >>> again.seek(source.position())
        >>> again.next()
        (3,)
    """
    if data is None:
        return _ByGeneration(lambda generation: ())
    if isinstance(data, Iterable):
        iterator = iter(data)
        return _Stateful(iterator) if hasattr(iterator, "set_state") else _Counted(iterator)
    if callable(data):
        return _ByGeneration(data)
    raise RunError(
        f"got data of type {type(data).__name__}; None, an iterable of batches, or a function of the generation's "
        "number is required."
    )


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


class _ByGeneration:
    def __init__(self, data: Callable[[int], object]) -> None:
        self._data, self._generation = data, 0

    def next(self) -> tuple:
        batch = self._data(self._generation)
        self._generation += 1
        return _arguments(batch)

    def position(self) -> Position:
        return self._generation

    def seek(self, position: Position) -> None:
        self._generation = int(position)


class _Counted:
    def __init__(self, iterator: Iterator[object]) -> None:
        self._iterator, self._taken = iterator, 0

    def next(self) -> tuple:
        batch = next(self._iterator)
        self._taken += 1
        return _arguments(batch)

    def position(self) -> Position:
        return self._taken

    def seek(self, position: Position) -> None:
        for _ in range(int(position) - self._taken):
            try:
                self.next()
            except StopIteration:
                raise RunError(
                    f"got data that end after {self._taken} batches; the run to resume has taken {position}. Resume it "
                    "with the data that it was started with."
                ) from None


class _Stateful:
    """An iterator that tells its state: a JSON value (`grain.MapDataset`, `IterDataset`) or bytes (`DataLoader`)."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def next(self) -> tuple:
        return _arguments(next(self._iterator))

    def position(self) -> Position:
        state = self._iterator.get_state()
        return {"bytes": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"state": state}

    def seek(self, position: Position) -> None:
        if not isinstance(position, dict):
            raise RunError(
                "got data that keep a state of their own; the run to resume was started with data that do not. Resume "
                "it with the data that it was started with."
            )
        state = base64.b64decode(position["bytes"]) if "bytes" in position else position["state"]
        self._iterator.set_state(state)
