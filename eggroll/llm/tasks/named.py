"""Tasks by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from eggroll.extras import MissingPackageError
from eggroll.llm.tasks.arithmetic import Arithmetic
from eggroll.llm.tasks.base import Task
from eggroll.llm.tasks.conciseness import Conciseness
from eggroll.llm.tasks.countdown import Countdown
from eggroll.llm.tasks.options import Value
from eggroll.training.errors import RunError

TASKS: dict[str, type[Task]] = {task.name: task for task in (Arithmetic, Conciseness, Countdown)}
REASONING = "reasoning_gym:"


def task_named(name: str, /, **options: Value) -> Task:
    """A ready task.

    Args:
        name: "arithmetic", "conciseness", "countdown", or "reasoning_gym:NAME" for any dataset of that package (extra
            `reasoning`), such as "reasoning_gym:chain_sum".
        **options: the task's own; `system` and `max_tokens` for all; see `eggroll.llm.tasks.arithmetic.Arithmetic` and
            its neighbours.

    Returns:
        The task.

    Raises:
        RunError: no such task or option, a value that the option cannot have, or the package is missing.

    Example:
        >>> task_named("countdown", sizes=(3,)).problems("train", 1, seed=1)[0].data["numbers"]
        [92, 97, 15]
    """
    make = _maker(name, options)
    try:
        return make(**options)
    except MissingPackageError:
        raise
    except (TypeError, ValueError) as why:
        raise RunError(f"the task {name!r} cannot be made: {why}") from why


def _maker(name: str, options: Mapping[str, Any]) -> Callable[..., Task]:
    """What makes the task, once it is known to have these options."""
    if name.startswith(REASONING):
        from eggroll.llm.tasks.reasoning import ReasoningGym  # its package is an extra

        return partial(ReasoningGym, name.removeprefix(REASONING))  # the dataset says which options it has
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RunError(f"there is no task {name!r}; there are {', '.join(TASKS)} and {REASONING}NAME.{hint}")
    known = list(inspect.signature(TASKS[name]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise RunError(f"the task {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}.")
    return TASKS[name]
