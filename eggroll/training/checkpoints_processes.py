"""Several processes that read one folder act on what the first of them finds there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from eggroll.training.errors import RunError


def is_first() -> bool:
    """Whether this is the process that writes manifests and removes old checkpoints."""
    return jax.process_index() == 0


def first_decides(function: Callable[[], Any]) -> Any:
    """What `function` gives in the first process, in all of them; a `RunError` there is raised in all of them.

    All processes have to call it. The result is JSON.
    """
    if jax.process_count() == 1:
        return function()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"result": function()}
        except RunError as why:
            answer = {"error": str(why)}
    answer = _from_first(answer)
    if "error" in answer:
        raise RunError(answer["error"])
    return answer["result"]


def raise_together(error: RunError | None) -> None:
    """Raises if any process has an error, in all of them, so that none goes on alone. All processes have to call it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = np.asarray(multihost_utils.process_allgather(np.asarray(error is not None)))
        if error is None and failed.any():
            raise RunError(f"Process {int(failed.argmax())} could not save its checkpoint; its own message says why.")
    if error is not None:
        raise error


def _from_first(answer: dict[str, Any]) -> dict[str, Any]:
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(text.size, np.int32)))
    padded = text if is_first() else np.zeros(length, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
