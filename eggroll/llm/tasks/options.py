"""Checks of the options that all tasks have: they may come from a command line, where anything can be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Value: TypeAlias = "bool | int | float | str | Sequence[Value] | Mapping[str, Value] | None"  # of a task's option


def is_integer(value: Any) -> bool:
    """Whether it is an integer, and not True or False.

    Example:
        >>> is_integer(3), is_integer(3.0), is_integer(True)
        (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def check_common(system: Any, max_tokens: Any) -> None:
    """Raises `ValueError` for a system message that is no text, or no number of tokens."""
    if not isinstance(system, str | None):
        raise ValueError(f"got system={system!r}; a text is required.")
    if not is_integer(max_tokens) or max_tokens < 1:
        raise ValueError(f"got max_tokens={max_tokens!r}; an integer of at least 1 is required.")
