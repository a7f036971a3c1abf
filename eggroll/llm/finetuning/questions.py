"""The questions of a run: drawn and encoded once, all padded to one length, so that one shape is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from eggroll.llm.answers.prompts import Prompts, encode
from eggroll.llm.finetuning.asked import Asked
from eggroll.llm.tasks import Problem, Task, custom_task, task_named
from eggroll.llm.tasks.base import TooFewError
from eggroll.llm.tasks.options import options_from
from eggroll.training.options import SettingsError

if TYPE_CHECKING:
    from eggroll.llm.model.loading import LanguageModel


POOL = 1024  # training problems to draw from, unless the user says otherwise


@dataclass(frozen=True)
class Questions:
    """Problems, and their prompts as tokens.

    Attributes:
        problems: what scorers are given.
        prompts: `tokens [n, time]`, padded on the left, and `start [n]`, in the same order.
    """

    problems: tuple[Problem, ...]
    prompts: Prompts

    def __len__(self) -> int:
        return len(self.problems)

    def take(self, numbers: Any) -> Questions:
        """Those with these numbers, in that order."""
        rows = np.asarray(numbers)
        return Questions(tuple(self.problems[i] for i in rows), Prompts(*(x[rows] for x in self.prompts)))


def task_of(asked: Asked, tell: Callable[[str], None] = lambda line: None) -> Task:
    """The task that was asked for; what it says of its files is told.

    Raises:
        RunError: there is none of that name or with these options, its package is missing, or a reward or prompts
            that cannot be read.
    """
    options: dict[str, Any] = options_from(asked.task_options)
    options |= {name: x for name in ("system", "max_tokens", "degenerate") if (x := getattr(asked, name)) is not None}
    if asked.task is not None:
        return task_named(asked.task, **options)
    assert asked.reward is not None and asked.prompts_file is not None
    unknown = sorted(set(options) - {"system", "max_tokens", "degenerate"})
    if unknown:
        raise SettingsError(f"a reward of your own has no option {unknown[0]!r}; it has system and max_tokens.")
    files: dict[str, Any] = {"prompts": asked.prompts_file, "test_prompts": asked.test_prompts_files}
    files["prompt_column"] = asked.prompt_column
    task = custom_task(reward=asked.reward, worst=asked.worst, **files, **options)
    for line in task.said:
        tell(line)
    return task


def asking_of(asked: Asked) -> dict[str, Any]:
    """How `questions` are put to a model."""
    template = options_from(asked.template_options)
    return {"template": template, "chat": asked.template != "none", "prefix": asked.answer_prefix or ""}


def questions(
    language: LanguageModel,
    task: Task,
    split: Any,
    count: int | None,
    seed: int,
    *,
    most: int = POOL,
    template: Mapping[str, Any] | None = None,
    date: datetime | None = None,
    chat: bool = True,
    prefix: str = "",
) -> Questions:
    """Draws problems of a task and encodes them for a model.

    Args:
        language: the model that is asked.
        task: the task; `task.max_tokens` have to fit the model's context after the prompt.
        split: `"train"` or `"test"`.
        count: how many; None: as many as the task has, up to `most`.
        seed: decides which.
        most: see `count`. Default 1024.
        template: further options of the chat template. Default None.
        date: what a template that writes a date is told. Default None: now.
        chat: whether the model's chat template is used. Default True.
        prefix: how every answer begins. Default "".

    Raises:
        RunError: the task has fewer, or a prompt is too long.
    """
    try:
        problems = task.problems(split, count or most, seed)
    except TooFewError as why:
        if count is not None or not why.available:
            raise
        problems = why.found or task.problems(split, why.available, seed)
    try:
        prompts = encode(
            language.tokenizer,
            [problem.messages or problem.prompt for problem in problems],
            system=task.system,
            context=language.config.context,
            max_tokens=task.max_tokens,
            pad=language.pad,
            multiple=1,  # all prompts of a run have one length anyway
            template=template,
            vocabulary=language.config.vocabulary,
            date=date,
            chat=chat,
            prefix=prefix,
        )
    except ValueError as why:
        raise SettingsError(str(why)) from why
    return Questions(tuple(problems), prompts)


def chosen(pool: int, count: int, generation: int, seed: int) -> np.ndarray:
    """The numbers `[count]` of a generation's questions: the pool is gone through in an order that each pass shuffles.

    No question is asked twice in a generation: a pass has whole generations, and leaves out what is too little for one
    more. A function of its arguments alone, so that a run goes on anywhere.

    Example:
        >>> sorted([*chosen(4, 2, 0, seed=7).tolist(), *chosen(4, 2, 1, seed=7).tolist()])
        [0, 1, 2, 3]
    """
    if count > pool:
        raise ValueError(f"got count={count} of pool={pool}; at most as many as there are is required.")
    turn, place = divmod(generation, pool // count)
    return _order(pool, seed, turn)[place * count : (place + 1) * count]


@lru_cache(maxsize=8)
def _order(pool: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, turn]).permutation(pool)
