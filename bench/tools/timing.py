"""Interleaved timing: what is compared takes turns in one process, so that a slow minute hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

LEAST_ROUNDS = 3  # of candidates so slow that all rounds would take too long


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate, one number a round.

    Attributes:
        name: the candidate.
        seconds: one entry a round, in order.
    """

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return float(np.median(self.seconds))

    def ratio(self, other: Timing) -> Ratio:
        """This candidate's time in units of the other's, round by round."""
        each = np.array(self.seconds) / np.array(other.seconds)
        return Ratio(*(float(q) for q in np.quantile(each, (0.5, 0.25, 0.75))))


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: median over rounds, with the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 9,
    least_seconds: float = 0.05,
    most_seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time candidates in turns, A B C, A B C.

    Every candidate is called once beforehand, which compiles it; then as many times a round as fill `least_seconds`.
    On a CPU every call is waited for; on accelerators, whose queue hides the launching of calls, the last of a turn.

    Args:
        candidates: name → a call without arguments; what it returns is waited for.
        rounds: how often each has its turn.
        least_seconds: a turn lasts at least about this long.
        most_seconds: after this time there are no more rounds than three.

    Returns:
        name → timing, in the given order.
    """
    repeats = {name: _repeats(call, least_seconds) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - start > most_seconds:
            break
        for name, call in candidates.items():
            seconds[name].append(_turn(call, repeats[name]))
    return {name: Timing(name, tuple(values)) for name, values in seconds.items()}


def _repeats(call: Callable[[], Any], least_seconds: float) -> int:
    jax.block_until_ready(call())  # compiles
    return max(1, round(least_seconds / max(_turn(call, 1), 1e-6)))


def _turn(call: Callable[[], Any], repeats: int) -> float:
    """Seconds per call. An accelerator works through a queue: waiting for each call would time the waiting."""
    queued = jax.default_backend() != "cpu"
    start = time.perf_counter()
    for left in reversed(range(repeats)):
        result = call()
        if not queued or not left:
            jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def medians(timings: Sequence[Timing]) -> dict[str, float]:
    """Median seconds by name."""
    return {timing.name: timing.median for timing in timings}
