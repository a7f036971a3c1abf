"""Several processes that read one folder act on what the first of them finds there, and on each other's errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from eggroll.training.errors import RunError
from eggroll.training.processes.talk import count, gather, is_main


def first_decides(function: Callable[[], Any]) -> Any:
    """What `function` gives in process 0, in all of them; a `RunError` there is raised in all of them.

    All processes have to call it. The result is JSON.
    """
    if count() == 1:
        return function()
    answer: dict[str, Any] = {}
    if is_main():
        try:
            answer = {"result": function()}
        except RunError as why:
            answer = {"error": str(why)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(gather(np.array(text.size, np.int64))[0])
    answer = json.loads(gather(np.resize(text, length))[0].tobytes())
    if "error" in answer:
        raise RunError(answer["error"])
    return answer["result"]


def raise_together(error: RunError | None) -> None:
    """Raises if any process has an error, in all of them, so that none goes on alone. All processes have to call it."""
    failed = gather(np.array(error is not None, np.uint8))
    if error is None and failed.any():
        raise RunError(f"Process {int(failed.argmax())} could not save its checkpoint; its own message says why.")
    if error is not None:
        raise error
