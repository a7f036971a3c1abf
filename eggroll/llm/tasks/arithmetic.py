"""Arithmetic: a task that a small model can climb on a CPU, with few generated tokens."""

from __future__ import annotations

import random
import re

from eggroll.llm.tasks.base import Degenerate, Generated, Problem, is_degenerate
from eggroll.llm.tasks.options import check_common, is_integer

LONG = 40  # characters beyond the number for which nothing but being right is rewarded
RIGHT = 0.2
NUMBER = 0.1
INTEGER = re.compile(r"[+-]?[0-9]+")


class Arithmetic(Generated):
    """Sums and differences, `What is 7 + 5?`, of which only the number is wanted.

    The reward, with `e` the characters beyond those of the right number:

    - `0.2 + 0.8·max(0, 1 − e/40)` if the right number stands in the text as a number of its own: 1 for the number
      alone, 0.82 for "7 + 5 = 12.";
    - 0.1 for a wrong number alone;
    - 0 for anything else, and for an answer that repeats itself or was cut off, whatever is in it.

    So it has no plateau where small models start: they mostly know the sum and write around it, and every character
    left out counts the same. Being right is worth more than being short, at any length, and listing many numbers to
    have the right one among them earns no more than 0.2 once the list is long. A wrong number alone is worth
    something, so that the format can be learnt before the sums, and less than any right answer. Our own task; not from
    a paper.

    Args:
        largest: the largest operand, at least 1. Default 20, which makes 420 problems.
        operations: of "+", "-" and "*". Default "+-". Differences are never negative.
        system: the system message. Default None.
        max_tokens: tokens that an answer may have. Default 16.
        degenerate: what an answer gets that says nothing, as `Task.degenerate` has it. Default "worst"; "scored":
            without the last rule, as in earlier versions.

    Raises:
        ValueError: an option that is none of these.

    Example:
        >>> task = Arithmetic()
        >>> problem = Problem("What is 7 + 5?", 12)
        >>> [round(task.reward(text, problem), 3) for text in ("12", "7 + 5 = 12.", "13", "It is 13.", "120")]
        [1.0, 0.82, 0.1, 0.0, 0.1]
        >>> task.problems("test", 2, seed=0) == task.problems("test", 2, seed=0)
        True
    """

    name = "arithmetic"
    worst = 0.0

    def __init__(
        self,
        *,
        largest: int = 20,
        operations: str = "+-",
        system: str | None = None,
        max_tokens: int = 16,
        degenerate: Degenerate = "worst",
    ) -> None:
        check_common(system, max_tokens, degenerate)
        if not is_integer(largest) or largest < 1:
            raise ValueError(f"got largest={largest!r}; an integer of at least 1 is required.")
        if not isinstance(operations, str) or not operations or set(operations) - set("+-*"):
            raise ValueError(f"got operations={operations!r}; some of '+', '-' and '*' are required, such as '+-'.")
        self.largest, self.operations, self.system, self.max_tokens = largest, operations, system, max_tokens
        self.degenerate = degenerate

    def draw(self, rng: random.Random) -> Problem:
        """Makes up one problem; its data is the result."""
        operation = rng.choice(self.operations)
        left, right = (rng.randint(1, self.largest) for _ in range(2))
        if operation == "-":
            left, right = max(left, right), min(left, right)
        result = {"+": left + right, "-": left - right, "*": left * right}[operation]
        return Problem(f"What is {left} {operation} {right}?", result)

    def identity(self, problem: Problem) -> str:
        """Sums and products of the same numbers in the other order are the same problem."""
        left, operation, right = problem.prompt.rstrip("?").split()[2:]
        first, second = sorted((int(left), int(right)), reverse=True)
        return f"{first} {operation} {second}"

    def reward(self, text: str, problem: Problem) -> float:
        """Rewards the number alone with 1, and the number within a text with less, the longer the text."""
        text, wanted = text.strip(), str(problem.data)
        if self.degenerate == "worst" and text != wanted and is_degenerate(text):
            return 0.0
        if re.search(rf"(?<![0-9.,-]){wanted}(?![0-9]|[.,][0-9])", text):
            excess = len(text) - len(wanted)
            return RIGHT + (1 - RIGHT) * max(0.0, 1 - excess / LONG)
        return NUMBER if INTEGER.fullmatch(text) else 0.0
