"""Tasks by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from eggroll.llm.tasks.arithmetic import Arithmetic
from eggroll.llm.tasks.base import Task
from eggroll.llm.tasks.conciseness import Conciseness
from eggroll.llm.tasks.countdown import Countdown
from eggroll.training.errors import RunError

TASKS: dict[str, type[Task]] = {task.name: task for task in (Arithmetic, Conciseness, Countdown)}
REASONING = "reasoning_gym:"


def task_named(name: str, **options: Any) -> Task:
    """A ready task.

    Args:
        name: "arithmetic", "conciseness", "countdown", or "reasoning_gym:NAME" for any dataset of that package (extra
            `reasoning`), such as "reasoning_gym:chain_sum".
        **options: the task's own; `system` and `max_tokens` for all; see `eggroll.llm.tasks.arithmetic.Arithmetic` and
            its neighbours.

    Returns:
        The task.

    Raises:
        RunError: no such task or option, or the package is missing.

    Example:
        >>> task_named("countdown", sizes=(3,)).problems("train", 1, seed=1)[0].data["numbers"]
        [92, 97, 15]
    """
    if name.startswith(REASONING):
        from eggroll.llm.tasks.reasoning import ReasoningGym  # its package is an extra

        return ReasoningGym(name.removeprefix(REASONING), **options)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RunError(f"there is no task {name!r}; there are {', '.join(TASKS)} and {REASONING}NAME.{hint}")
    known = list(inspect.signature(TASKS[name]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise RunError(f"the task {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}.")
    try:
        return TASKS[name](**options)
    except ValueError as why:
        raise RunError(f"the task {name!r} cannot be made: {why}") from why
