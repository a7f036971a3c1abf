"""Arithmetic written by a model, evaluated without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 256  # characters of an expression; deeper nesting than these allow is refused by the parser itself
ALLOWED = re.compile(r"[0-9+\-*/() \t\n]+", re.ASCII)
OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
SIGNS: dict[type, Callable[[Fraction], Fraction]] = {ast.UAdd: lambda a: a, ast.USub: lambda a: -a}


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
