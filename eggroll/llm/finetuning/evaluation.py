"""How good a model is at a task: mean reward with its standard error, on prompts that were not trained on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Answers, Generator, generator, split
from eggroll.llm.answers.generation import generate_plain
from eggroll.llm.finetuning.answering import Marker, decoding_of, marker_of, open_model, scorers_of
from eggroll.llm.finetuning.model_folders import asked_as_in_its_run
from eggroll.llm.finetuning.questions import Questions, asking_of, questions, task_of
from eggroll.llm.finetuning.settings import EvaluateSettings
from eggroll.llm.finetuning.statistics import Statistics, divergence
from eggroll.llm.rewards.scoring import settled
from eggroll.training.errors import RunError

LOGGER = logging.getLogger("eggroll")
FAR, MANY, FEW = 1.0, 0.5, 8  # nats a token and a share of answers that are told; answers that may well be alike
TOLD = {
    "far": "the model is {kl:.2f} nats a token from the one that it was tuned from (KL, on its own answers): it may "
    "forget what the reward does not ask for. Lower --sigma or --learning-rate, or take the best checkpoint.",
    "empty": "{empty:.0%} of the held-out answers are empty: silence is easily learnt. Have such answers score worst "
    "(--degenerate worst), or lower --sigma.",
    "alike": "only {distinct:.0%} of the held-out answers differ from one another: prompts are answered alike. Lower "
    "--sigma or --learning-rate, or have the reward look at the prompt.",
}
PROMPTS = 256  # that are answered, unless the user says otherwise


@dataclass(frozen=True)
class Measured:
    """How a model did.

    Attributes:
        reward: mean over the prompts. Where some answers could not be scored and nobody knows the worst reward, over
            the others; NaN if there are none.
        error: its standard error, over prompts; NaN for a single one.
        answers: what they are like.
        tokens_per_second: generated; the first time compilation is included.
        failed: answers that could not be scored.
        texts: the answers.
        rewards: theirs; None for one that could not be scored, unless the worst reward is known.
        why: why the first of them could not be scored; empty if all could.
        parts: mean of each of several rewards over the answers that it applies to, and of each of several sets of
            prompts.
        kl: how far the model is from its base; see `divergence`. None without one.
    """

    reward: float
    error: float
    answers: Statistics
    tokens_per_second: float
    failed: int
    texts: tuple[str, ...]
    rewards: tuple[float | None, ...]
    why: str = ""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    kl: float | None = None

    def numbers(self) -> dict[str, Any]:
        """All but the answers, as JSON can hold it."""
        return {
            "prompts": len(self.texts),
            "reward": round(self.reward, 6) if math.isfinite(self.reward) else None,
            "error": round(self.error, 6) if math.isfinite(self.error) else None,
            **self.answers.record(),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "scorer_errors": self.failed,
            **({} if self.kl is None else {"kl": round(self.kl, 6)}),
            **({"rewards": dict(self.parts)} if self.parts else {}),
        }

    def record(self) -> dict[str, float | None]:
        """What the metrics of a run have of it."""
        kl = {} if self.kl is None else {"test_kl": round(self.kl, 6)}
        reward = {"test_reward": round(self.reward, 6), "test_reward_error": round(self.error, 6)}
        parts = {f"test_reward/{name}": part for name, part in self.parts.items()}
        return reward | parts | self.answers.record("test_") | kl

    def warnings(self) -> list[str]:
        """What its reward does not show: names in `TOLD`."""
        found = self.answers
        alike = len(self.texts) >= FEW and found.distinct < MANY and found.empty < MANY
        shown = {"far": self.kl is not None and self.kl > FAR, "empty": found.empty > MANY, "alike": alike}
        return [name for name, is_so in shown.items() if is_so]

    def checked(self) -> Measured:
        """Itself.

        Raises:
            RunError: not one answer has a reward.
        """
        if not math.isfinite(self.reward):
            raise RunError(f"the reward failed for all {len(self.texts)} answers; the first: {self.why}.")
        return self

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
        base: parameters of the model that others are compared with. Default None: of none.
    """

    def __init__(
        self,
        generator: Generator,
        asked: Questions,
        marker: Marker,
        *,
        key: jax.Array | None = None,
        budget: float | None = None,
        base: PyTree = None,
    ) -> None:
        self._generator, self._asked, self._marker, self._base = generator, asked, marker, base
        self._options: dict[str, Any] = {"key": key, "budget": budget}
        self._told: set[str] = set()

    def __call__(self, params: PyTree) -> Measured:
        """How these parameters do; what a reward alone does not show is told once."""
        measured = self._measured(params)
        for name in measured.warnings():
            if name not in self._told:
                self._told.add(name)
                answers = measured.answers
                LOGGER.warning(TOLD[name].format(kl=measured.kl, empty=answers.empty, distinct=answers.distinct))
        return measured

    def _measured(self, params: PyTree) -> Measured:
        start = time.perf_counter()
        answers = jax.device_get(generate_plain(params, self._generator, self._asked.prompts, **self._options))
        seconds = time.perf_counter() - start
        scorers = self._marker.scorers
        texts, rewards = self._marker.attempt(answers, self._asked.problems)
        values = rewards.values if scorers.worst is None else settled(rewards, scorers.worst).values
        known = values[np.isfinite(values)]
        return Measured(
            reward=float(known.mean()) if known.size else math.nan,
            error=float(known.std(ddof=1)) / math.sqrt(known.size) if known.size > 1 else math.nan,
            answers=self._marker.statistics(answers, texts),
            tokens_per_second=float(answers.length.sum()) / seconds,
            failed=rewards.failed,
            texts=tuple(texts),
            rewards=tuple(x if math.isfinite(x) else None for x in values.tolist()),
            why=rewards.error,
            parts={name: _mean(part) for name, part in {**rewards.parts, **self._by_set(values)}.items()},
            kl=self._divergence(params, answers),
        )

    def _by_set(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """The rewards of each of several sets."""
        sets = np.array([problem.of for problem in self._asked.problems])
        return {str(name): values[sets == name] for name in dict.fromkeys(sets) if name}

    def _divergence(self, params: PyTree, answers: Answers) -> float | None:
        if self._base is None or params is self._base:
            return None if self._base is None else 0.0
        return divergence(self._generator.graphdef, params, self._base, self._asked.prompts, answers)


def _mean(part: np.ndarray) -> float | None:
    known = part[np.isfinite(part)]
    return round(float(known.mean()), 6) if known.size else None


def evaluate(
    settings: EvaluateSettings, *, tell: Callable[[str], None] = lambda line: None
) -> tuple[Measured, Questions]:
    """Scores a model at a task.

    Args:
        settings: which model, which task. The model of a run of that task is asked with the run's system message and
            `max_tokens`, unless others are given.
        tell: called with each line of what the task says of its files, before the model is loaded.

    Returns:
        How it did, and the questions that it was asked.

    Raises:
        RunError: a model, a task or prompts that do not fit, or no answer that can be scored.
    """
    settings.check()
    settings = asked_as_in_its_run(settings)
    task = task_of(settings, tell)
    language = open_model(settings)
    asking = asking_of(settings)
    asked = questions(language, task, settings.split, settings.prompts, settings.seed, most=PROMPTS, **asking)
    graphdef, params = split(language.model)
    fun = generator(graphdef, decoding_of(settings, task, language))
    key = jax.random.key(settings.seed) if settings.temperature else None
    with scorers_of(settings, task) as scorers:
        return Evaluator(fun, asked, marker_of(settings, task, language, scorers), key=key, budget=settings.budget)(
            params
        ).checked(), asked
