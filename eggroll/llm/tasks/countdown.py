"""Countdown: reach a target with the given numbers and + - * /; what a model wrote is evaluated without running it."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable
from fractions import Fraction

from eggroll.llm.tasks.base import Degenerate, Generated, Problem, is_degenerate
from eggroll.llm.tasks.options import check_common, is_integer

SYSTEM = "You are a helpful assistant. Think a problem through first, then give the user your answer."
PROMPT = (
    "Use the numbers {numbers} to make an arithmetic expression that equals {target}. You may use +, -, *, / and "
    "parentheses, and you must use every number exactly once. Write your reasoning between <think> and </think>, and "
    "then only the expression between <answer> and </answer>, for example <answer> (1 + 2) / 3 </answer>."
)
LARGEST = 99
TARGETS = range(10, 101)
LONGEST = 256  # characters of an expression; deeper nesting than these allow is refused by the parser itself
ALLOWED = re.compile(r"[0-9+\-*/() \t\n]+", re.ASCII)
OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
SIGNS: dict[type, Callable[[Fraction], Fraction]] = {ast.UAdd: lambda a: a, ast.USub: lambda a: -a}


class Countdown(Generated):
    r"""Reach a target with the given numbers, each used once, and + - * /.

    From arXiv 2509.24372: numbers and a target, reasoning in `<think>`, the expression in `<answer>`; the reward is
    `0.1·format + answer`. `answer` is 1 if the last answer's expression uses exactly the given numbers and equals the
    target, else 0. `format` is 1 for one think block, then one answer block, and nothing else; otherwise a think block
    that is closed earns 0.1 and an answer block 0.5, as in the paper's published code.

    Ours: the words of the prompt; the problems (the paper takes a published set with 3 and 4 numbers), which are made
    up so that each has a solution, from numbers of 1 to 99 with targets of 10 to 100; exact rational arithmetic; one in
    five is for tests; that the model itself opens `<think>` (the paper's prompt ends with it); and that an answer has
    reward 0 whose last answer block says nothing, or that repeats itself or was cut off.

    Args:
        sizes: how many numbers a problem may have, each 2 to 6. Default (3, 4), as in the paper.
        system: the system message. Default: to think first.
        max_tokens: tokens that an answer may have. Default 256.
        degenerate: what an answer gets that says nothing, as `Task.degenerate` has it. Default "worst"; "scored":
            without the last rule, as in the paper.

    Raises:
        ValueError: a size out of range, or an option that is none of these.

    Example:
        >>> task = Countdown()
        >>> problem = task.problems("train", 1, seed=0)[0]
        >>> task.reward(f"<think>I know.</think>\n<answer>{problem.data['solution']}</answer>", problem)
        1.1
        >>> task.reward("<think>I give up.</think>\n<answer>none</answer>", problem)
        0.1

    References:
        Qiu et al., Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning, arXiv 2509.24372.
    """

    name = "countdown"
    worst = 0.0

    def __init__(
        self,
        *,
        sizes: tuple[int, ...] = (3, 4),
        system: str | None = SYSTEM,
        max_tokens: int = 256,
        degenerate: Degenerate = "worst",
    ) -> None:
        check_common(system, max_tokens, degenerate)
        several = isinstance(sizes, tuple | list) and len(sizes) > 0
        if not several or not all(is_integer(size) and 2 <= size <= 6 for size in sizes):
            raise ValueError(f"got sizes={sizes!r}; a list of integers from 2 to 6 is required, such as [3, 4].")
        self.sizes, self.system, self.max_tokens, self.degenerate = tuple(sizes), system, max_tokens, degenerate

    def identity(self, problem: Problem) -> str:
        """The same numbers in another order, with the same target, are the same problem."""
        return f"{sorted(problem.data['numbers'])} {problem.data['target']}"

    def draw(self, rng: random.Random) -> Problem:
        """Makes up one problem; its data has "numbers", "target", and a "solution"."""
        size = rng.choice(self.sizes)
        while True:
            numbers = [rng.randint(1, LARGEST) for _ in range(size)]
            target, solution = _combined(rng, numbers)
            if target in TARGETS:
                break
        shown = "[" + ", ".join(map(str, numbers)) + "]"
        data = {"numbers": numbers, "target": target, "solution": solution}
        return Problem(PROMPT.format(numbers=shown, target=target), data)

    def reward(self, text: str, problem: Problem) -> float:
        """`0.1·format + answer`; 0 for what says nothing."""
        answer = _block(text, "answer")
        if self.degenerate == "worst" and (is_degenerate(text) or (answer is not None and is_degenerate(answer))):
            return 0.0
        return 0.1 * format_reward(text) + answer_reward(text, problem.data["numbers"], problem.data["target"])


def format_reward(text: str) -> float:
    """1 for one think block followed by one answer block; 0.1 and 0.5 for either alone; else 0.

    Example:
        >>> format_reward("<think>2 + 3</think> <answer>5</answer>"), format_reward("<answer>5</answer>")
        (1.0, 0.5)
    """
    text = text.strip()
    thought, answered = _block(text, "think"), _block(text, "answer")
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    if thought is not None and answered is not None and once:
        between = text[text.find("</think>") + len("</think>") : text.find("<answer>")]
        if text.startswith("<think>") and text.endswith("</answer>") and not between.strip():
            return 1.0
    return 0.1 * (thought is not None) + 0.5 * (answered is not None)


def answer_reward(text: str, numbers: list[int], target: int) -> float:
    """1 if the expression in the last answer block uses exactly these numbers and equals the target; else 0.

    Example:
        >>> [answer_reward(f"<answer>{e}</answer>", [2, 3, 4], 20) for e in ("(2 + 3) * 4", "4 * 5", "20", "4**2+4")]
        [1.0, 0.0, 0.0, 0.0]
    """
    answer = _block(text, "answer")
    if answer is None:
        return 0.0
    try:
        tree = parsed(answer.strip())
        right = sorted(numbers_in(tree)) == sorted(numbers) and evaluate(tree) == target
    except Unusable:
        return 0.0
    return float(right)


def _block(text: str, tag: str) -> str | None:
    """What stands between the last pair of these tags; None if there is none."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return text[start + len(tag) + 2 : end] if end >= 0 and start >= 0 else None


def _combined(rng: random.Random, numbers: list[int]) -> tuple[int, str]:
    """Joins random pairs by random operations until one value is left; divisions only where they go out even."""
    parts = [(number, str(number)) for number in numbers]
    while len(parts) > 1:
        (a, left), (b, right) = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        choices = {"+": a + b, "-": a - b, "*": a * b}
        if b and a % b == 0:
            choices["/"] = a // b
        operation = rng.choice(list(choices))
        parts.append((choices[operation], f"({left} {operation} {right})"))
    value, solution = parts[0]
    return value, solution[1:-1]


class Unusable(ValueError):
    """A text that is no arithmetic expression, or one without a value."""


def parsed(text: str) -> ast.expr:
    """The syntax tree of an expression of whole numbers, + - * /, signs and parentheses.

    Args:
        text: at most 256 characters, all of them digits, operations, parentheses or white space.

    Raises:
        Unusable: anything else, powers and floor division included.

    Example:
        >>> sorted(numbers_in(parsed("(1 + 2) / 3")))
        [1, 2, 3]
    """
    if len(text) > LONGEST or not ALLOWED.fullmatch(text):
        raise Unusable(f"got {text[:LONGEST]!r}; whole numbers, + - * / and parentheses are required.")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as why:
        raise Unusable(f"got {text!r}, which is no expression: {why}") from None
    for node in ast.walk(tree):
        if not isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Constant, *OPERATIONS, *SIGNS)):
            raise Unusable(f"got {type(node).__name__} in {text!r}; only + - * / are allowed.")
    return tree


def numbers_in(tree: ast.expr) -> list[int]:
    """The numbers that an expression uses, as often as it does."""
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int]


def evaluate(tree: ast.expr) -> Fraction:
    """The exact value of a tree from `parsed`.

    Raises:
        Unusable: a division by zero.

    Example:
        >>> evaluate(parsed("1 / 3 + 1 / 6"))
        Fraction(1, 2)
    """
    match tree:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in SIGNS:
            return SIGNS[type(sign)](evaluate(operand))
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in OPERATIONS:
            try:
                return OPERATIONS[type(operation)](evaluate(left), evaluate(right))
            except ZeroDivisionError:
                raise Unusable("a division by zero") from None
    raise Unusable(f"got {type(tree).__name__}; only numbers and + - * / are allowed.")
