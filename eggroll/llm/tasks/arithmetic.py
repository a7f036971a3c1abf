"""Arithmetic: a task that a small model can climb on a CPU, with few generated tokens."""

from __future__ import annotations

import random
import re

from eggroll.llm.tasks.base import Degenerate, Generated, Problem, is_degenerate
from eggroll.llm.tasks.options import check_common, is_integer

LONG = 40  # characters beyond the number for which nothing but being right is rewarded
RIGHT = 0.2
NUMBER = 0.1
NUMBERS = re.compile(r"(?<![0-9.,])-?[0-9]+(?:[.,][0-9]+)*")


class Arithmetic(Generated):
    """Sums and differences, `What is 7 + 5?`, of which only the number is wanted.

    An answer is the last number of a text, as the field's graders take it: a sum that is said again has numbers, too.
    The reward, with `e` the characters beyond those of the right number, and `short = max(0, 1 − e/40)`:

    - `0.2 + 0.8·short` for the right number: 1 for it alone, 0.82 for "7 + 5 = 12.";
    - `0.1·short` for a wrong one: 0.1 for it alone, 0.08 for "7 + 5 = 13.";
    - 0 for a text without a number, and for an answer that repeats itself or was cut off, whatever is in it.

    So it has no plateau where small models start: they know some of the sums, write around them and do not come to an
    end. Ending, and every character left out, counts whether the sum is right or not, so that the format can be learnt
    before the sums; any right answer is worth more than any wrong one. Our own task; not from a paper.

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
        [1.0, 0.82, 0.1, 0.083, 0.098]
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
        """Rewards the right number alone with 1, and less, the longer the text around it; a wrong one with a tenth."""
        text, wanted = text.strip(), str(problem.data)
        if self.degenerate == "worst" and text != wanted and is_degenerate(text):
            return 0.0
        found = NUMBERS.findall(text)
        if not found:
            return 0.0
        short = max(0.0, 1 - max(0, len(text) - len(wanted)) / LONG)
        return RIGHT + (1 - RIGHT) * short if found[-1] == wanted else NUMBER * short
