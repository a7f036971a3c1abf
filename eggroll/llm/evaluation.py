"""How good a model is at a task: mean reward with its standard error, on prompts that were not trained on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import jax

from eggroll.llm.answering import Marker, decoding_of, open_model
from eggroll.llm.decoding import Generator, generator, split
from eggroll.llm.generation import generate_plain
from eggroll.llm.questions import Questions, questions, task_of
from eggroll.llm.scoring import Scorers
from eggroll.llm.settings import EvaluateSettings

PROMPTS = 256  # that are answered, unless the user says otherwise


@dataclass(frozen=True)
class Measured:
    """How a model did.

    Attributes:
        reward: mean over the prompts.
        error: its standard error, over prompts; NaN for a single one.
        answer_tokens: mean length of an answer, a stop token included.
        tokens_per_second: generated; the first time compilation is included.
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
        generator: from `eggroll.llm.generator`.
        asked: the questions.
        marker: what makes text and rewards of answers.
        key: for a temperature above 0.
        budget: bytes that answering may take; see `eggroll.llm.generate`. Default None.
    """

    def __init__(
        self,
        generator: Generator,
        asked: Questions,
        marker: Marker,
        *,
        key: jax.Array | None = None,
        budget: float | None = None,
    ) -> None:
        self._generator, self._asked, self._marker = generator, asked, marker
        self._options: dict[str, Any] = {"key": key, "budget": budget}

    def __call__(self, params: Any) -> Measured:
        """How these parameters do."""
        start = time.perf_counter()
        answers = jax.device_get(generate_plain(params, self._generator, self._asked.prompts, **self._options))
        seconds = time.perf_counter() - start
        texts = self._marker.texts(answers)
        rewards = self._marker.rewards(texts, self._asked.problems)
        n = len(texts)
        return Measured(
            reward=float(rewards.values.mean()),
            error=float(rewards.values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
            answer_tokens=float(answers.length.mean()),
            tokens_per_second=float(answers.length.sum()) / seconds,
            failed=rewards.failed,
            texts=tuple(texts),
            rewards=tuple(rewards.values.tolist()),
        )


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
        return Evaluator(fun, asked, marker, key=key, budget=settings.budget)(params), asked
