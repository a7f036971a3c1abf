"""What runs in a process that scores: no JAX, no NumPy, only the reward and what that imports."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

LONGEST = 400  # characters of what is told of an error
ORPHAN = 5.0  # seconds after which a process ends itself that its parent should have ended
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # there is a process for every core
HAS_TIMER = hasattr(signal, "setitimer")

_reward: Callable[..., Any] | None = None
_trouble = ""
_nowhere: Any = None


class TimeUp(BaseException):
    """Not an `Exception`, so that a reward's own `except Exception` does not catch it."""


class NoNumber(TypeError):
    """A reward that is no finite number."""


def prepare(pickled: bytes) -> None:
    """Loads the reward. Never raises: the pool would end itself without saying why; see `trouble`."""
    global _reward, _trouble, _nowhere
    os.environ["JAX_PLATFORMS"] = "cpu"  # a reward that imports JAX leaves the accelerator to the run
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held back at the start, ignored by now
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what a reward prints is no part of the run's output
    _nowhere = open(os.devnull, "w")  # noqa: SIM115 (faulthandler needs a file as long as the process lives)
    try:
        _reward = pickle.loads(pickled)
    except BaseException as why:  # whatever a user's module raises, SystemExit too
        _trouble = described(why)


def trouble() -> str:
    """Why the reward could not be loaded; empty if it was."""
    return _trouble


def score(payload: bytes, seconds: float, turn: float) -> list[float | str] | str:
    """Scores answers one by one, until a turn is over.

    Args:
        payload: pickled (texts, problems).
        seconds: for each answer.
        turn: no answer is begun later than so many seconds after the first.

    Returns:
        For each of the first answers, at least one, the reward, or in words why there is none; only words, if the
        payload cannot be loaded here.
    """
    try:
        texts, problems = pickle.loads(payload)
    except Exception as why:  # such as a class of the script that runs
        return described(why)
    began, said = time.monotonic(), []
    faulthandler.dump_traceback_later(turn + seconds + ORPHAN, exit=True, file=_nowhere)  # needs no interpreter lock
    try:
        for text, problem in zip(texts, problems, strict=True):
            if said and time.monotonic() - began > turn:
                break
            said.append(_one(text, problem, seconds))
    finally:
        faulthandler.cancel_dump_traceback_later()
    return said


def _one(text: str, problem: Any, seconds: float) -> float | str:
    assert _reward is not None
    try:
        with _limit(seconds):
            value = _reward(text, problem)
        return number(value)
    except TimeUp:
        return f"no reward within {seconds:g} s"
    except BaseException as why:  # whatever a reward raises, SystemExit too
        return described(why)


@contextlib.contextmanager
def _limit(seconds: float) -> Any:
    """Raises `TimeUp` in Python code that takes longer; code that cannot be interrupted is ended from outside."""
    if not HAS_TIMER:
        yield
        return
    signal.signal(signal.SIGALRM, _time_is_up)  # every time: a reward may have set its own
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _time_is_up(*_: Any) -> None:
    raise TimeUp


def number(value: Any) -> float:
    """The reward as a float.

    Args:
        value: a number: Python's, NumPy's, or an array without axes; True is 1.

    Raises:
        NoNumber: anything else, NaN and infinity included.

    Example:
        >>> number(True), number(2)
        (1.0, 2.0)
    """
    required = "a finite number is required"
    if isinstance(value, str | bytes):
        raise NoNumber(f"returned the string {value[:60]!r}; {required}, such as float(...) of it")
    if not (hasattr(value, "__float__") or hasattr(value, "__index__")) or getattr(value, "ndim", 0):
        raise NoNumber(f"returned {_short(value)} of type {type(value).__name__}; {required}")
    result = float(value)
    if not math.isfinite(result):
        raise NoNumber(f"returned {result}; {required}")
    return result


def described(error: BaseException) -> str:
    """An error in words, with the place in the code that raised it."""
    if isinstance(error, NoNumber):
        return str(error)
    try:
        text = str(error)
    except Exception:  # a user's exception class
        text = "an error that cannot be printed"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text[:LONGEST]}".rstrip(": ") + where


def _short(value: Any) -> str:
    try:
        return repr(value)[:60]
    except Exception:  # a user's class
        return "something"
