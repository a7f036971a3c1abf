"""A task of the user's own: a Python function as reward, and a file of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eggroll.importing import check_import
from eggroll.llm.tasks.base import Degenerate, Listed, Problem, divided, is_degenerate
from eggroll.llm.tasks.combined import Combined, Named, weighted
from eggroll.llm.tasks.options import check_common
from eggroll.llm.tasks.problems import read_prompts
from eggroll.training.errors import RunError


class Custom(Listed):
    """See `custom_task`, which checks what it is given."""

    def __init__(
        self,
        reward: Named | Sequence[Named],
        train: list[Problem],
        test: list[Problem],
        *,
        name: str,
        system: str | None,
        max_tokens: int,
        worst: float | None,
        said: tuple[str, ...] = (),
        degenerate: Degenerate = "scored",
    ) -> None:
        super().__init__(train, test)
        self.name, self.system, self.max_tokens, self.worst, self.said = name, system, max_tokens, worst, said
        self.degenerate = degenerate
        self.scorer = Combined([reward] if isinstance(reward, str) or callable(reward) else reward)

    @property
    def scored_by(self) -> Combined:
        """The rewards, which say each what it finds."""
        return self.scorer

    def reward(self, text: str, problem: Problem) -> float:
        """What the user's function says."""
        if self.degenerate == "worst" and self.worst is not None and is_degenerate(text):
            return self.worst
        return self.scorer(text, problem)

    def __reduce__(self) -> tuple:
        """Travels to worker processes by the function's name, without the prompts: scorers are given theirs."""
        options = {"name": self.name, "system": self.system, "max_tokens": self.max_tokens, "worst": self.worst}
        options["degenerate"] = self.degenerate
        return _rebuilt, (self.scorer, options)


def custom_task(
    *,
    reward: Named | Sequence[Named],
    prompts: str | Path,
    test_prompts: str | Path | Sequence[str | Path] | None = None,
    system: str | None = None,
    max_tokens: int = 128,
    name: str | None = None,
    worst: float | None = None,
    prompt_column: str | None = None,
    degenerate: Degenerate = "scored",
) -> Custom:
    r"""A task from a reward function and a file of prompts.

    The function is called as `function(text, problem)`, in processes of their own without JAX: `text` is the answer as
    a string, without the prompt and special tokens; `problem.prompt` is the prompt, and `problem.data` a dict with all
    that its row of the file holds by column (for a text file, the prompt alone). It returns a finite number, the more
    the better.

    Args:
        reward: "module:function" (the module is looked for in the current directory too), a callable, or a list of
            these, of which the weighted mean counts: "module:function=weight". See `Combined` for what they may be.
        prompts: a file in UTF-8 with a prompt a line (`.txt`), or a table: `.csv`, `.tsv`, `.json`, `.jsonl` (all of
            these also as `.gz`), `.parquet`, `.arrow`, or a folder that `datasets` has saved. A prompt is a text or a
            list of messages with "role" and "content"; of a table, the other columns are the reward's.
        test_prompts: a file of the same kinds, to test on, or several: sets whose rewards are told apart by the names
            of their files. Default None: one prompt in five of `prompts`, at least one.
        system: the system message. Default None.
        max_tokens: tokens that an answer may have. Default 128.
        name: for logs. Default: the name of the function.
        worst: the least reward that there can be, finite, which an answer gets for which the function fails. Default
            None: unknown; the lowest reward of the other answers then.
        prompt_column: of a table, the column of prompts. Default None: "prompt", or else the one of "messages" and
            "question" that there is.
        degenerate: "worst": an answer that is empty, repeats itself or was cut off gets `worst`, which is to be given
            then. Default "scored": what the function says of it.

    Returns:
        The task.

    Raises:
        RunError: no such module or function, something that cannot be called, a file that is missing, empty or
            malformed, with the number of the line, or an option that is none of these.

    Example:
        >>> import pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = pathlib.Path(folder.name, "prompts.txt")
        >>> file.write_text("Say hello.\nSay goodbye.\n")
        24
        >>> task = custom_task(reward="operator:contains", prompts=file)
        >>> task.name, task.size("train"), task.size("test")
        ('contains', 1, 1)
        >>> folder.cleanup()
    """
    try:
        check_common(system, max_tokens, degenerate)
    except ValueError as why:
        raise RunError(f"the task of {reward!r} cannot be made: {why}") from why
    if degenerate == "worst" and worst is None:
        raise RunError('got degenerate="worst" without worst, the least that the reward can be; give it (--worst).')
    rewards = [reward] if isinstance(reward, str) or callable(reward) else reward
    for each, _ in map(weighted, rewards):
        if isinstance(each, str):
            check_import(each, "the reward")
    scorer = Combined(rewards)
    train, said = read_prompts(Path(prompts), prompt_column)
    told = [said]
    files = [test_prompts] if isinstance(test_prompts, str | Path) else list(test_prompts or ())
    if not files:
        if len({problem.prompt for problem in train}) < 2:
            raise RunError(
                f"{prompts} has one prompt, and one is needed to test on besides; write more, or name a file with "
                "test_prompts."
            )
        train, test = divided(train)
        told.append(f"{len(test)} of these prompts are held out to test on")
    else:
        test = []
        for name, file in zip(_sets(files, scorer), files, strict=True):
            found, said = read_prompts(Path(file), prompt_column)
            told.append(f"to test on, {said}")
            _disjoint(train, found, prompts, file)
            test += [replace(problem, of=name) for problem in found]
    _check_system(system, [*train, *test], prompts)
    options: dict[str, Any] = {
        "system": system,
        "max_tokens": max_tokens,
        "worst": worst,
        "degenerate": degenerate,
        "said": tuple(told),
    }
    scorer.check(list(dict.fromkeys(column for problem in train for column in problem.data if column != "prompt")))
    return Custom(scorer.given, train, test, name=name or "-".join(scorer.names), **options)


def _sets(files: Sequence[str | Path], scorer: Combined) -> list[str]:
    """What the sets of several files are called."""
    if len(files) == 1:
        return [""]
    names = [Path(file).name.partition(".")[0] or Path(file).name for file in files]
    taken = sorted({name for name in names if names.count(name) > 1 or name in scorer.names})
    if taken:
        raise RunError(
            f"got several files to test on, and {taken[0]!r} is the name of two of them, or of a reward; sets are told "
            "apart by the names of their files, so different ones are required. Rename one."
        )
    return names


def _disjoint(train: list[Problem], test: list[Problem], prompts: Any, test_prompts: Any) -> None:
    both = {problem.prompt for problem in train} & {problem.prompt for problem in test}
    if both:
        raise RunError(
            f"{len(both)} prompts stand both in {prompts} and in {test_prompts}, for example {min(both)[:80]!r}; take "
            "them out of one, or a test says nothing."
        )


def _check_system(system: str | None, problems: list[Problem], prompts: Any) -> None:
    if system is not None and all(p.messages and p.messages[0]["role"] == "system" for p in problems):
        raise RunError(
            f"got system={system!r}, and all conversations of {prompts} begin with a system message of their own; "
            "leave it out."
        )


def _rebuilt(scorer: Combined, options: dict[str, Any]) -> Custom:
    return Custom(scorer.given, [], [], **options)
