"""Several processes act as one: on what the first of them finds, on the same settings, and on each other's errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from eggroll.training.errors import RunError
from eggroll.training.folder.settings import differences
from eggroll.training.processes.talk import count, gather, gather_json, is_main

MOST = 8  # differences that are told
SAME_START = "Start every process with the same command, code and files."

T = TypeVar("T")


def agree(stop: bool) -> bool:
    """Whether any process asks to stop: the same answer in all of them, so that they end after the same generation.

    A gather of one byte per process; all of them have to call it. Free in a process that is alone.

    Args:
        stop: what this process asks.

    Returns:
        True if any does.

    Raises:
        RunError: another process is gone.
    """
    return bool(stop) if count() == 1 else bool(gather(np.array([bool(stop)], np.uint8)).any())


def same(value: bytes | str | Mapping[str, object], what: str, advice: str = SAME_START) -> None:
    """Raises unless all processes have the same value: settings, versions, the data's position.

    Args:
        value: the value or a digest of it: text, bytes, or JSON by name, whose differences the message names with both
            values. Its SHA-256 is what crosses between processes, and the rest where that differs.
        what: its name, for the message.
        advice: what to do about it, the message's last sentence.

    Raises:
        RunError: it differs, in every process; or another process is gone.
    """
    if count() == 1:
        return
    raw = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    found = gather(np.frombuffer(hashlib.sha256(raw).digest(), np.uint8))
    others = [i for i, row in enumerate(found.tolist()) if row != found[0].tolist()]
    if not others:
        return
    told = {} if isinstance(value, bytes) else {what: value} if isinstance(value, str) else dict(value)
    first, *rest = gather_json(told)
    lines = [f"{line} (process 0 → process {i})" for i in others for line in differences(first, rest[i - 1])]
    if isinstance(value, Mapping) and not lines:  # results of functions, which are round to each host
        return
    more = f"; and {len(lines) - MOST} more" if len(lines) > MOST else ""
    are = "process" if len(others) == 1 else "processes"
    raise RunError(
        f"got {what} in which {are} {', '.join(map(str, others))} of {count()} differ from process 0"
        f"{': ' * bool(lines)}{'; '.join(lines[:MOST])}{more}; all have to be the same. {advice}",
        everywhere=True,
    )


def first_decides(function: Callable[[], T]) -> T:
    """What `function` gives in process 0, in all of them; a `RunError` there is raised in all of them.

    All processes have to call it. The result is JSON.
    """
    if count() == 1:
        return function()
    result, error = None, None
    if is_main():
        try:
            result = function()
        except RunError as why:
            error = str(why)
    result, error = gather_json([result, error])[0]
    if error is not None:
        raise RunError(error, everywhere=True)
    return result


def raise_together(error: RunError | None) -> None:
    """Raises if any process has an error, in all of them, so that none goes on alone. All processes have to call it."""
    failed = gather(np.array(error is not None, np.uint8))
    if error is None and failed.any():
        error = RunError(f"Process {int(failed.argmax())} could not save its checkpoint; its own message says why.")
    if error is not None:
        error.everywhere = True
        raise error
