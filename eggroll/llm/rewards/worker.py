"""What runs in the processes that score: no JAX, no NumPy, only the reward and what that imports."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

QUESTION = struct.Struct("<Q")  # before each pickle that comes: its bytes
# What goes back, and all that can: which question (0: the reward itself), how many numbers follow (a reward's parts of
# each answer, NaN for one that does not apply), and how many bytes of UTF-8, which say why there are none.
REPLY = struct.Struct("<IHH")
LONGEST = 400  # characters of what is told of an error
MOST_BYTES = 4 * LONGEST + 400  # with its kind and its place


class NoNumber(TypeError):
    """A reward that is no finite number."""


def guard() -> None:
    """Runs beside the processes that score, and ends what is left of them when their parent is gone, however it went.

    Each line of standard input is a process group: said once, it has started; said again, it was ended.
    """
    groups: set[int] = set()
    for line in sys.stdin:
        groups ^= {int(line)}
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


def main() -> None:
    """Loads the reward, then scores one answer after another; all of it comes through a socket, standard input."""
    channel = os.dup(0)  # which children of the reward do not inherit ...
    os.register_at_fork(after_in_child=lambda: os.close(channel))  # ... nor keep: its end tells that of this process
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what a reward reads is no answer
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what a reward prints is no part of the run's output
    reward, asked = None, 0
    with open(channel, "rb", closefd=False) as questions:
        while size := questions.read(QUESTION.size):
            payload = questions.read(*QUESTION.unpack(size))
            if reward is None:
                values, (reward, why) = [], loaded(payload)
            else:
                values, why = scored(reward, payload)
            text = why.encode(errors="replace")[:MOST_BYTES]
            numbers = struct.pack(f"<{len(values)}d", *values)
            os.write(channel, REPLY.pack(asked, len(values), len(text)) + numbers + text)
            asked += 1


def loaded(payload: bytes) -> tuple[Any, str]:
    """What was pickled, or why it cannot be loaded."""
    try:
        return pickle.loads(payload), ""
    except BaseException as why:  # whatever a user's module raises, SystemExit too
        return None, described(why)


def scored(reward: Callable[..., Any], payload: bytes) -> tuple[list[float], str]:
    """The reward of one answer, or its parts of several, one answer after the other; or why there is none."""
    texts, pickles = pickle.loads(payload)
    problems = []
    for data in pickles:
        problem, why = loaded(data)
        if why:
            return [], f"the problem cannot be loaded in another process: {why}"
        problems.append(problem)
    try:
        if not hasattr(reward, "reward_each"):
            return [number(reward(texts[0], problems[0]))], ""
        return [value for row in reward.reward_each(texts, problems) for value in parts(row)], ""
    except BaseException as error:  # whatever a reward raises, SystemExit too
        return [], described(error)


def parts(row: list[Any]) -> list[float]:
    """What the rewards say of one answer, NaN for None; one at least has to be a number."""
    if all(value is None for value in row):
        raise NoNumber("returned None, which says that a reward does not apply; one that applies is required")
    return [math.nan if value is None else number(value) for value in row]


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
        raise NoNumber(f"returned {repr(value)[:60]} of type {type(value).__name__}; {required}")
    result = float(value)
    if not math.isfinite(result):
        raise NoNumber(f"returned {result}; {required}")
    return result


def described(error: BaseException) -> str:
    """An error in words, with the place in the code that raised it; never empty."""
    kind = type(error).__name__
    try:
        text = str(error)[:LONGEST]
        frames = traceback.extract_tb(error.__traceback__)
    except BaseException:  # a user's exception class
        return f"{kind}: an error that cannot be printed"
    if isinstance(error, NoNumber):
        return text
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{kind}: {text}".rstrip(": ") + where
