"""Rewards by Python functions, in processes of their own: in parallel, with a time limit, safe from what they do."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from eggroll.llm.rewards.environment import environment
from eggroll.llm.rewards.processes import Guard, Scorer, cloudpickle, pickled
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
        parts: `[n]` float64 of each of several rewards by name, NaN where it does not apply or failed.
    """

    values: np.ndarray
    failed: int
    error: str
    failures: np.ndarray
    parts: Mapping[str, np.ndarray] = MappingProxyType({})


class Scorers:
    """Processes that score answers. A context manager: they start on entry and are gone on exit, whatever happens.

    A reward fails for an answer if it raises, takes longer than `seconds`, ends its process, or returns anything but a
    finite number. Others are not disturbed: a process has one answer at a time, and is replaced when it is lost.

    The processes are fresh interpreters that import the module of the reward and nothing of the script that runs; JAX,
    should the reward import it, sees the CPU alone. Of the environment they have what programs need (PATH, HOME, the
    locale, Python's own) and `variables`. What comes back is a number or a text, and never unpickled. Each has a
    session of its own, which Ctrl-C does not reach; what a reward starts ends with it, unless that leaves the session.
    None of this is a sandbox: a reward is code that runs as the user who started it, and can do what that user can.

    Args:
        reward: `reward(text, problem)` → a finite number, maximised; True is 1. Any function, lambdas, closures and
            functions of a script or notebook included, as long as `cloudpickle` can send what it refers to.
        workers: processes. Default: one a core, 16 at most.
        seconds: for an answer, positive. Default 10.
        worst: the least reward that there can be, which an answer gets whose reward failed, such as `task.worst`.
            Default None: unknown.
        variables: names of further environment variables that the reward is given. Default none.

    Raises:
        RunError: on entry, if the reward cannot be sent to a process, or not be loaded there, or a variable is not set;
            on Windows.
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
        variables: Sequence[str] = (),
    ) -> None:
        if (workers is not None and workers < 1) or not (0 < seconds < math.inf):
            raise ValueError(
                f"got workers={workers} and seconds={seconds}; at least 1, and a positive time, are required."
            )
        self._workers, self._seconds = workers or min(_cores(), MOST_WORKERS), float(seconds)
        self._reward, self.worst, self._variables = reward, worst, tuple(variables)
        self._threads: ThreadPoolExecutor | None = None  # each waits for one process at a time

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rewards, where there are several."""
        names = tuple(getattr(self._reward, "names", ()))
        return names if len(names) > 1 else ()

    def __enter__(self) -> Scorers:
        if not hasattr(os, "killpg"):
            raise RunError("rewards run in process groups, which this system lacks; Linux, macOS or WSL is required.")
        made = repr(self._reward), pickled(self._reward), environment(self._variables)
        self._guard = Guard()
        self._scorers = [Scorer(*made, self._guard) for _ in range(self._workers)]
        self._idle: SimpleQueue[Scorer] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self._workers)
        try:
            starting = [self._threads.submit(self._start, scorer) for scorer in self._scorers]
            next(as_completed(starting)).result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        threads, self._threads = self._threads, None
        if threads is None:
            return
        try:
            threads.shutdown(wait=False, cancel_futures=True)
            for scorer in self._scorers:
                scorer.end(closed=True)
            threads.shutdown()
        finally:
            self._guard.close()  # ends what is left, should Ctrl-C have come in between

    def _start(self, scorer: Scorer) -> None:
        try:
            scorer.start()
        finally:
            self._idle.put(scorer)

    def _ask(self, batch: Sequence[tuple[str, bytes]]) -> list[list[float] | str]:
        """The parts of each answer's reward; where a batch fails, each is asked for alone, to fail alone."""
        width = len(self.names) or 1
        seconds = self._seconds * (1 if getattr(self._reward, "concurrent", True) else len(batch))
        scorer = self._idle.get()
        try:
            found = scorer.ask(pickle.dumps(tuple(zip(*batch, strict=True))), seconds, width * len(batch))
        finally:
            self._idle.put(scorer)
        if isinstance(found, str):
            return [found] if len(batch) == 1 else [one for each in batch for one in self._ask([each])]
        return [found[i : i + width] for i in range(0, len(found), width)]

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
        if self._threads is None:
            raise RuntimeError("the scorers are not running; use them inside `with Scorers(...) as scorers:`.")
        asked = _payloads(texts, problems)
        size = max(1, min(getattr(self._reward, "batch", 1), -(-len(asked) // self._workers)))
        batches = [asked[i : i + size] for i in range(0, len(asked), size)]
        said = [one for found in self._threads.map(self._ask, batches) for one in found]
        names = self.names or ("",)
        rows = [[np.nan] * len(names) if isinstance(one, str) else one for one in said]
        table = np.array(rows, np.float64).reshape(len(said), len(names))
        values = _mean(table, np.array(getattr(self._reward, "weights", (1.0,))))
        failures = np.isnan(values)
        error = ""
        if failures.any():
            first = int(np.argmax(failures))
            error = f"answer {first + 1} of {len(texts)}, to {problems[first].prompt[:60]!r}: {said[first]}"
        parts = dict(zip(names, table.T, strict=True)) if len(names) > 1 else {}
        return Rewards(values, int(failures.sum()), error, failures, parts)


def _mean(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted means `[n]` of what applies in `[n, rewards]`; NaN where nothing does."""
    if table.shape[1] == 1:
        return table[:, 0]
    applies = ~np.isnan(table)
    total = applies @ weights
    return np.where(total > 0, np.where(applies, table, 0) @ weights / np.where(total > 0, total, 1), np.nan)


def _payloads(texts: Sequence[str], problems: Sequence[Problem]) -> list[tuple[str, bytes]]:
    """Each answer with its problem, as a process loads them."""
    pickles: dict[int, bytes] = {}  # a population answers few problems many times
    try:
        for problem in problems:
            if id(problem) not in pickles:
                pickles[id(problem)] = cloudpickle.dumps(problem)
    except Exception as why:  # pickle raises many kinds
        raise RunError(
            f"the problems cannot be sent to other processes ({why}); plain data, such as dicts, lists, strings and "
            "numbers, is required in Problem.data."
        ) from why
    return [(text, pickles[id(problem)]) for text, problem in zip(texts, problems, strict=True)]


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
