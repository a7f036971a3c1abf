"""A tiny model, questions, and a reward that it can climb; scorers that stay in the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eggroll.llm.answers.prompts import encode
from eggroll.llm.finetuning.answering import Marker
from eggroll.llm.finetuning.questions import Questions
from eggroll.llm.rewards.scoring import Rewards, settled
from eggroll.llm.tasks import Problem
from tests.llm import tiny

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["red", "green", "blue", "white", "black", "brown", "grey", "pink", "gold", "silver", "violet", "orange"]


def language() -> Any:
    """A model with one tiny layer."""
    return tiny.language_model("smollm2", **SIZES, num_key_value_heads=1)


def asked(model: Any, count: int = 12, length: int = 48) -> Questions:
    """Questions, padded to `length` tokens."""
    problems = tuple(Problem(f"{WORDS[i % len(WORDS)]} {i}") for i in range(count))
    return Questions(problems, encode(model.tokenizer, [p.prompt for p in problems], pad=model.pad, multiple=length))


def letters(text: str, problem: Problem) -> float:
    """The share of plain letters among an answer's characters: 0 for no answer."""
    return sum("a" <= c.lower() <= "z" for c in text) / max(len(text), 1)


class InProcess:
    """Scores as `Scorers` does, without their processes."""

    def __init__(self, reward: Callable[[str, Problem], Any], worst: float | None = None) -> None:
        self.reward, self.worst, self.calls = reward, worst, []

    def attempt(self, texts: Sequence[str], problems: Sequence[Problem]) -> Rewards:
        self.calls.append((list(texts), list(problems)))
        values = np.array([self._one(*pair) for pair in zip(texts, problems, strict=True)])
        lost = np.isnan(values)
        return Rewards(values, int(lost.sum()), "the reward failed" if lost.any() else "", lost)

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> Rewards:
        return settled(self.attempt(texts, problems), self.worst)

    def _one(self, text: str, problem: Problem) -> float:
        try:
            return float(self.reward(text, problem))
        except Exception:
            return float("nan")


def marker(model: Any, reward: Callable[[str, Problem], Any] = letters, worst: float | None = None) -> Marker:
    """Text and rewards in this process."""
    return Marker(model.tokenizer, model.stop, InProcess(reward, worst))  # pyright: ignore[reportArgumentType]
