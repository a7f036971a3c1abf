"""What stands between a model and its rewards: how it is opened and asked, and its answers as text, scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from eggroll.llm.answers.decoding import Decoding
from eggroll.llm.answers.prompts import answer_texts
from eggroll.llm.answers.stop_strings import stop_strings
from eggroll.llm.finetuning.asked import Asked
from eggroll.llm.finetuning.model_folders import source_of
from eggroll.llm.model.loading import LanguageModel, load
from eggroll.llm.rewards.scoring import Rewards, Scorers
from eggroll.llm.tasks import Problem, Task
from eggroll.training.options import SettingsError


@dataclass(frozen=True)
class Marker:
    """Makes text of answers and has it scored.

    Attributes:
        tokenizer: of the model.
        stop: its stop tokens.
        scorers: open scorer processes.
        strings: its stop strings.
        prefix: how every answer begins.
    """

    tokenizer: Any
    stop: tuple[int, ...]
    scorers: Scorers
    strings: tuple[str, ...] = ()
    prefix: str = ""

    def texts(self, answers: Any) -> list[str]:
        """The answers as text, the last axis running fastest."""
        return answer_texts(self.tokenizer, answers, stop=self.stop, strings=self.strings, prefix=self.prefix)

    def rewards(self, texts: Sequence[str], problems: Sequence[Problem]) -> Rewards:
        """What the task says of each."""
        return self.scorers.score(texts, problems)


def marker_of(asked: Asked, language: LanguageModel, scorers: Scorers) -> Marker:
    """What makes text and rewards of a model's answers."""
    return Marker(language.tokenizer, language.stop, scorers, language.stop_strings, asked.answer_prefix or "")


def open_model(asked: Asked) -> LanguageModel:
    """The model that was asked for, in float32 on CPUs, where half precision is slow, unless a dtype was asked for.

    Raises:
        RunError: it cannot be loaded.
    """
    dtype = "float32" if asked.dtype is None and jax.default_backend() == "cpu" else asked.dtype
    return load(source_of(asked.model), dtype=dtype)


def scorers_of(asked: Asked, task: Task) -> Scorers:
    """Processes that score answers to a task; not started."""
    seconds, variables = asked.scorer_seconds, asked.reward_env
    return Scorers(task.reward, workers=asked.workers, seconds=seconds, worst=task.worst, variables=variables)


def decoding_of(asked: Asked, task: Task, language: LanguageModel, *, greedy: bool = False) -> Decoding:
    """How answers are written.

    Raises:
        SettingsError: a number outside its range.
    """
    draws = {} if greedy else {name: getattr(asked, name) for name in ("temperature", "top_k", "top_p")}
    strings = stop_strings(language.tokenizer, language.stop_strings, language.config.vocabulary)
    try:
        return Decoding(task.max_tokens, stop=language.stop, pad=language.pad, strings=strings, **draws)
    except ValueError as why:
        raise SettingsError(str(why)) from why
