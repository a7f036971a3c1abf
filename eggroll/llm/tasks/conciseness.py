"""Conciseness: answers as long as they need to be."""

from __future__ import annotations

from eggroll.llm.tasks.base import Listed, Problem, divided
from eggroll.llm.tasks.options import check_common
from eggroll.llm.tasks.questions import QUESTIONS


class Conciseness(Listed):
    r"""Answer in as many characters as the reference answer has: `−|len(answer) − len(reference)|`.

    The reward is that of arXiv 2509.24372. The paper trains on 2 questions and tests on 8; these are ours: more of
    them, each with a short answer that is right, one in five for tests. Length is all that is rewarded, as in the
    paper: a wrong answer of the right length has reward 0 too. Answers are measured in characters, without white space
    at either end.

    Args:
        system: the system message. Default None.
        max_tokens: tokens that an answer may have. Default 64; the paper allows 100.

    Raises:
        ValueError: an option that is none of these.

    Example:
        >>> task = Conciseness()
        >>> problem = Problem("What is the capital of France?", "Paris")
        >>> task.reward(" Paris\n", problem), task.reward("It is Paris.", problem)
        (0.0, -7.0)

    References:
        Qiu et al., Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning, arXiv 2509.24372.
    """

    name = "conciseness"

    def __init__(self, *, system: str | None = None, max_tokens: int = 64) -> None:
        check_common(system, max_tokens)
        super().__init__(*divided([Problem(question, answer) for question, answer in QUESTIONS]))
        self.system, self.max_tokens = system, max_tokens

    def reward(self, text: str, problem: Problem) -> float:
        """Minus the difference of the lengths in characters."""
        return float(-abs(len(text.strip()) - len(problem.data)))
