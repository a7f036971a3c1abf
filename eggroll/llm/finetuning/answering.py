"""What stands between a model and its rewards: how it is opened and asked, and its answers as text, scored."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from eggroll.llm.answers.decoding import Decoding
from eggroll.llm.answers.prompts import answer_texts
from eggroll.llm.answers.stop_strings import stop_strings
from eggroll.llm.finetuning.asked import Asked
from eggroll.llm.finetuning.model_folders import source_of
from eggroll.llm.finetuning.statistics import Statistics
from eggroll.llm.model.loading import LanguageModel, load
from eggroll.llm.model.lora import Adapting
from eggroll.llm.rewards.scoring import Rewards, Scorers, settled
from eggroll.llm.tasks import Problem, Task
from eggroll.llm.tasks.base import is_degenerate
from eggroll.training.options import SettingsError

LOGGER = logging.getLogger("eggroll")


@dataclass(frozen=True)
class Marker:
    """Makes text of answers and has it scored.

    Attributes:
        tokenizer: of the model.
        stop: its stop tokens.
        scorers: open scorer processes.
        strings: its stop strings.
        prefix: how every answer begins.
        cut_off: the reward of an answer that was cut off, instead of being scored. None: it is scored.
        whole: whether the same is done with answers that say nothing: of a reward that does not do so itself.
        told: warnings that were given, each once.
    """

    tokenizer: Any
    stop: tuple[int, ...]
    scorers: Scorers
    strings: tuple[str, ...] = ()
    prefix: str = ""
    cut_off: float | None = None
    whole: bool = False
    told: set[str] = field(default_factory=set, compare=False)

    def texts(self, answers: Any) -> list[str]:
        """The answers as text, the last axis running fastest."""
        return answer_texts(self.tokenizer, answers, stop=self.stop, strings=self.strings, prefix=self.prefix)

    def attempt(self, answers: Any, problems: Sequence[Problem]) -> tuple[list[str], Rewards]:
        """The texts, and what the task says of each; NaN where its reward failed."""
        texts = self.texts(answers)
        ended = np.ones(len(texts), bool) if self.cut_off is None else ~self._cut(answers, texts)
        if self.whole:
            ended &= [not is_degenerate(text) for text in texts]
        rest = np.flatnonzero(ended).tolist()
        if 2 * len(rest) < len(texts) and "cut off" not in self.told:
            self.told.add("cut off")
            LOGGER.warning(
                "%d of %d answers were cut off at --max-tokens or say nothing, and have the least reward, %g; give "
                "them more tokens, or --degenerate scored to have them scored as they are",
                len(texts) - len(rest),
                len(texts),
                self.cut_off,
            )
        scored = self.scorers.attempt([texts[i] for i in rest], [problems[i] for i in rest])
        values, failures = np.full(len(texts), self.cut_off, np.float64), np.zeros(len(texts), bool)
        values[rest], failures[rest] = scored.values, scored.failures
        parts = {name: np.full(len(texts), np.nan) for name in scored.parts}
        for name, part in parts.items():
            part[rest] = scored.parts[name]
        return texts, scored._replace(values=values, failures=failures, parts=parts)

    def rewards(self, answers: Any, problems: Sequence[Problem]) -> Rewards:
        """As `attempt`, with the worst reward where it failed; see `Scorers.score`."""
        return settled(self.attempt(answers, problems)[1], self.scorers.worst)

    def statistics(self, answers: Any, texts: Sequence[str]) -> Statistics:
        """Of answers whose texts these are; see `Statistics.of`."""
        return Statistics.of(answers.length, [text[len(self.prefix) :] for text in texts], self._cut(answers, texts))

    def _cut(self, answers: Any, texts: Sequence[str]) -> np.ndarray:
        """Which answers have all tokens that they may have, of which the last is no stop token."""
        tokens = np.asarray(answers.tokens)
        last = tokens.reshape(-1, tokens.shape[-1])[:, -1]
        full = (np.asarray(answers.length).reshape(-1) == tokens.shape[-1]) & ~np.isin(last, self.stop)
        if not self.strings or not full.any():
            return full
        whole = answer_texts(self.tokenizer, answers, stop=self.stop, prefix=self.prefix)
        return full & np.array([one == text for one, text in zip(whole, texts, strict=True)])


def marker_of(asked: Asked, task: Task, language: LanguageModel, scorers: Scorers) -> Marker:
    """What makes text and rewards of a model's answers."""
    cut_off = task.worst if task.degenerate == "worst" else None
    own = cut_off is not None and asked.reward is not None
    prefix = asked.answer_prefix or ""
    return Marker(language.tokenizer, language.stop, scorers, language.stop_strings, prefix, cut_off, own)


def open_model(asked: Asked, lora: Adapting | None = None) -> LanguageModel:
    """The model that was asked for, in float32 on CPUs, where half precision is slow, unless a dtype was asked for.

    Args:
        asked: which model.
        lora: adapters that it is given. Default None: none.

    Raises:
        RunError: it cannot be loaded.
    """
    dtype = "float32" if asked.dtype is None and jax.default_backend() == "cpu" else asked.dtype
    return load(source_of(asked.model), dtype=dtype, lora=lora)


def scorers_of(asked: Asked, task: Task) -> Scorers:
    """Processes that score answers to a task; not started."""
    seconds, variables = asked.scorer_seconds, asked.reward_env
    return Scorers(task.scored_by, workers=asked.workers, seconds=seconds, worst=task.worst, variables=variables)


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
