"""Rewards by Python functions, in processes of their own: in parallel, with a time limit, safe from what they do."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eggroll.llm.rewards.call import Call
from eggroll.llm.rewards.pool import Processes
from eggroll.llm.rewards.processes import pickled
from eggroll.llm.tasks.base import Problem
from eggroll.training.errors import RunError

MOST_WORKERS = 16


class Rewards(NamedTuple):
    """What scorers said.

    Attributes:
        values: `[n]` float64, finite; where the reward failed, the worst there is: see `settled` (from `attempt`: NaN).
        failed: for how many answers it failed.
        error: the first of these failures in words, with the prompt; empty if there is none.
        failures: `[n]` bool, where it failed.
    """

    values: np.ndarray
    failed: int
    error: str
    failures: np.ndarray


class Scorers:
    """Processes that score answers. A context manager: they start on entry and are gone on exit, whatever happens.

    A reward fails for an answer if it raises, takes longer than `seconds`, ends its process (which is replaced), or
    returns anything but a finite number. Others are not disturbed. An answer is scored twice if one of its batch ends
    the process.

    The processes are fresh interpreters that import the module of the reward and nothing of the script that runs; JAX,
    should the reward import it, sees the CPU alone. They ignore Ctrl-C, which is the run's.

    Args:
        reward: `reward(text, problem)` → a finite number, maximised; True is 1. It has to be importable: a function at
            the top level of a module, or the method of a task whose class lies in one; no lambda, nothing of
            `__main__`.
        workers: processes. Default: one a core, 16 at most.
        seconds: for an answer, positive. Default 10.
        worst: the least reward that there can be, which an answer gets whose reward failed, such as `task.worst`.
            Default None: unknown.

    Raises:
        RunError: on entry, if the reward cannot be sent to a process, or not be imported there.
        ValueError: no workers or no time.

    Example:
        >>> from eggroll.llm.tasks import Problem, task_named
        >>> with Scorers(task_named("arithmetic").reward, workers=1) as scorers:
        ...     rewards = scorers.score(["3", "4"], [Problem("1 + 2 =", 3)] * 2)
        >>> rewards.values.tolist(), rewards.failed
        ([1.0, 0.1], 0)
    """

    def __init__(
        self,
        reward: Callable[[str, Problem], float],
        *,
        workers: int | None = None,
        seconds: float = 10.0,
        worst: float | None = None,
    ) -> None:
        if (workers is not None and workers < 1) or not (0 < seconds < math.inf):
            raise ValueError(
                f"got workers={workers} and seconds={seconds}; at least 1, and a positive time, are required."
            )
        self._workers, self._seconds = workers or min(_cores(), MOST_WORKERS), float(seconds)
        self._reward, self.worst = reward, worst
        self._processes: Processes | None = None

    def __enter__(self) -> Scorers:
        data = pickled(self._reward)
        self._processes = Processes(repr(self._reward), data, workers=self._workers, seconds=self._seconds)
        return self

    def __exit__(self, *_: Any) -> None:
        processes, self._processes = self._processes, None
        if processes is not None:
            processes.stop()

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> Rewards:
        """Scores answers; one whose reward failed gets the worst of this call, or `worst` if that is less.

        Args:
            texts: the answers.
            problems: for each, the problem that was asked.

        Returns:
            The rewards.

        Raises:
            RunError: the reward failed for all of them and `worst` is None; it quotes the first failure.
            ValueError: not as many problems as texts.
        """
        return settled(self.attempt(texts, problems), self.worst)

    def attempt(self, texts: Sequence[str], problems: Sequence[Problem]) -> Rewards:
        """As `score`, but NaN where the reward failed, even if it did for all.

        For runs of several processes: each attempts the answers that it holds, all gather, and all call `settled`.

        Args:
            texts: the answers.
            problems: for each, the problem that was asked.

        Returns:
            The rewards.

        Raises:
            RunError: the problems cannot be pickled, or processes cannot be started any more.
            ValueError: not as many problems as texts.
        """
        if len(texts) != len(problems):
            raise ValueError(f"got {len(texts)} texts and {len(problems)} problems; a problem for each is required.")
        if self._processes is None:
            raise RuntimeError("the scorers are not running; use them inside `with Scorers(...) as scorers:`.")
        said = Call(self._processes, texts, problems).run()
        values = np.array([one if isinstance(one, float) else np.nan for one in said], np.float64)
        failures = np.isnan(values)
        error = ""
        if failures.any():
            first = int(np.argmax(failures))
            error = f"answer {first + 1} of {len(texts)}, to {problems[first].prompt[:60]!r}: {said[first]}"
        return Rewards(values, int(failures.sum()), error, failures)


def settled(rewards: Rewards, worst: float | None = None) -> Rewards:
    """Gives the worst reward to all answers for which there is none.

    Args:
        rewards: from `Scorers.attempt`, or of several of these together.
        worst: the least reward that there can be. Default None: the worst is the lowest finite one here.

    Raises:
        RunError: there is none at all.

    Example:
        >>> rewards = Rewards(np.array([2.0, np.nan, -1.0]), 1, "it raised", np.array([False, True, False]))
        >>> settled(rewards).values.tolist()
        [2.0, -1.0, -1.0]
        >>> settled(rewards, worst=-5).values.tolist()
        [2.0, -5.0, -1.0]
    """
    values = np.asarray(rewards.values)
    known = [*values[np.isfinite(values)], *([] if worst is None else [worst])]
    if values.size and not known:
        raise all_failed(rewards)
    return rewards._replace(values=np.where(np.isnan(values), min(known), values)) if rewards.failed else rewards


def all_failed(rewards: Rewards) -> RunError:
    """The error of answers none of which could be scored."""
    return RunError(f"the reward failed for all {len(rewards.values)} answers; the first: {rewards.error}.")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
