"""How good a model is at a task: mean reward with its standard error, on prompts that were not trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from eggroll.llm.answering import Marker, decoding_of, memory_explained, open_model
from eggroll.llm.decoding import Answers, generator, split
from eggroll.llm.questions import Questions, questions, task_of
from eggroll.llm.scoring import Scorers
from eggroll.llm.settings import EvaluateSettings

PROMPTS = 256  # that are answered, unless the user says otherwise
ROWS = 64  # prompts that are answered at once, unless memory forbids


@dataclass(frozen=True)
class Measured:
    """How a model did.

    Attributes:
        reward: mean over the prompts.
        error: its standard error, over prompts; NaN for a single one.
        answer_tokens: mean length of an answer, a stop token included.
        tokens_per_second: generated, compilation left out where there was more than one round.
        failed: answers that could not be scored; they have the worst reward.
        texts: the answers.
        rewards: theirs.
    """

    reward: float
    error: float
    answer_tokens: float
    tokens_per_second: float
    failed: int
    texts: tuple[str, ...]
    rewards: tuple[float, ...]

    def numbers(self) -> dict[str, Any]:
        """All but the answers, as JSON can hold it."""
        return {
            "prompts": len(self.texts),
            "reward": round(self.reward, 6),
            "error": round(self.error, 6) if math.isfinite(self.error) else None,
            "answer_tokens": round(self.answer_tokens, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "scorer_errors": self.failed,
        }

    def __str__(self) -> str:
        spread = f" ± {self.error:.4f}" if math.isfinite(self.error) else ""
        return f"{self.reward:.4f}{spread}"


class Evaluator:
    """Has a model answer the same questions whenever it is called.

    Args:
        fun: from `eggroll.llm.generator`.
        asked: the questions.
        marker: what makes text and rewards of answers.
        rows: prompts that are answered at once.
        key: for a temperature above 0.
    """

    def __init__(
        self,
        fun: Callable[..., Answers],
        asked: Questions,
        marker: Marker,
        *,
        rows: int = ROWS,
        key: jax.Array | None = None,
    ) -> None:
        self._answer, self._asked, self._marker = jax.jit(fun), asked, marker
        self._rows, self._key = min(rows, len(asked)), key

    def __call__(self, params: Any) -> Measured:
        """How these parameters do."""
        rounds = range(0, len(self._asked), self._rows)
        found = [self._round(params, first) for first in rounds]
        tokens = np.concatenate([answers.tokens for answers, _ in found])[: len(self._asked)]
        length = np.concatenate([answers.length for answers, _ in found])[: len(self._asked)]
        texts = self._marker.texts(Answers(tokens, length))
        rewards = self._marker.rewards(texts, self._asked.problems)
        timed = found[1:] or found  # the first round may compile
        written = sum(int(answers.length.sum()) for answers, _ in timed)
        n = len(texts)
        return Measured(
            reward=float(rewards.values.mean()),
            error=float(rewards.values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
            answer_tokens=float(length.mean()),
            tokens_per_second=written / sum(seconds for _, seconds in timed),
            failed=rewards.failed,
            texts=tuple(texts),
            rewards=tuple(rewards.values.tolist()),
        )

    def _round(self, params: Any, first: int) -> tuple[Answers, float]:
        """Answers to the next prompts, always as many, so that there is one shape to compile; and seconds."""
        start = time.perf_counter()
        rows = np.minimum(np.arange(first, first + self._rows), len(self._asked) - 1)
        prompts = self._asked.take(rows).prompts
        key = () if self._key is None else (jax.random.fold_in(self._key, first),)
        with memory_explained(f"{self._rows} prompts were answered"):
            answers = jax.device_get(self._answer(params, *prompts, *key))
        return answers, time.perf_counter() - start


def evaluate(settings: EvaluateSettings) -> tuple[Measured, Questions]:
    """Scores a model at a task.

    Args:
        settings: which model, which task.

    Returns:
        How it did, and the questions that it was asked.

    Raises:
        RunError: a model, a task or prompts that do not fit.
    """
    settings.check()
    task = task_of(settings)
    language = open_model(settings)
    asked = questions(language, task, settings.split, settings.prompts, settings.seed, most=PROMPTS)
    graphdef, params = split(language.model)
    fun = generator(graphdef, decoding_of(settings, task, language))
    key = jax.random.key(settings.seed) if settings.temperature else None
    with Scorers(task.reward, workers=settings.workers, seconds=settings.scorer_seconds) as scorers:
        marker = Marker(language.tokenizer, language.stop, scorers)
        return Evaluator(fun, asked, marker, rows=settings.batch, key=key)(params), asked
