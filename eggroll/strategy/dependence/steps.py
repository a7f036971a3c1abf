"""Steps from an operand's axis to a result's: which index goes where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Step(NamedTuple):
    """Index i of an operand's axis `into` enters index j of the result's axis `out`.

    Attributes:
        into: the operand's axis.
        out: the result's axis; from the result's number of axes on, what is summed over.
        reach: makes the matrix `[operand, result]` of which index enters which; None: i = j.
        shift: the index that belongs to i is i + shift; None: none does.
    """

    into: int
    out: int
    reach: Callable[[], np.ndarray] | None = None
    shift: int | None = 0


Route = list[Step]


def picks(source: np.ndarray, length: int) -> Callable[[], np.ndarray]:
    """A matrix for a result whose index j was read at `source[j]`; -1: nowhere."""

    def matrix() -> np.ndarray:
        reach = np.zeros((length, len(source)), bool)
        there = (source >= 0) & (source < length)
        reach[source[there], np.flatnonzero(there)] = True
        return reach

    return matrix


def read(into: int, out: int, source: np.ndarray, length: int) -> Step:
    """A step along which the result's index j was read at `source[j]`."""
    found = np.unique((np.arange(len(source)) - source)[(source >= 0) & (source < length)])
    if len(source) == length and len(found) == 1 and found[0] == 0 and source.min() >= 0:
        return Step(into, out)
    return Step(into, out, picks(source, length), int(found[0]) if len(found) == 1 else None)


def window(n: int, size: int, stride: int, pad: tuple[int, int], dilate: int, spread: int) -> Callable[[], np.ndarray]:
    """Which of `n` inputs lie in the window of which output; inputs are spread out, and windows dilated."""

    def matrix() -> np.ndarray:
        count = ((n - 1) * spread + 1 + sum(pad) - (size - 1) * dilate - 1) // stride + 1
        places = np.arange(count)[:, None] * stride + np.arange(size) * dilate - pad[0]
        reach = np.zeros((n, max(count, 0)), bool)
        there = (places % spread == 0) & (places >= 0) & (places // spread < n)
        reach[(places // spread)[there], np.nonzero(there)[0]] = True
        return reach

    return matrix


def windowed(into: int, out: int, n: int, m: int, args: tuple[Any, ...]) -> Step:
    """A step from `n` inputs to `m` windows of them."""
    size, stride, pad, _, spread = args
    if size == 1 and stride == 1 and spread == 1 and tuple(pad) == (0, 0):
        return Step(into, out)
    return Step(into, out, window(n, *args), 0 if stride == spread == 1 and n == m else None)
