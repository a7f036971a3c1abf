"""Tasks for language models: prompts, and a scorer of the finished text."""

from __future__ import annotations

from eggroll.llm.tasks.base import Problem, Task
from eggroll.llm.tasks.custom import custom_task
from eggroll.llm.tasks.named import task_named

__all__ = ["Problem", "Task", "custom_task", "task_named"]
