"""Checks of the options that all tasks have: they may come from a command line, where anything can be written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from eggroll.training.options import SettingsError

Value: TypeAlias = "bool | int | float | str | Sequence[Value] | Mapping[str, Value] | None"  # of a task's option


def is_integer(value: Any) -> bool:
    """Whether it is an integer, and not True or False.

    Example:
        >>> is_integer(3), is_integer(3.0), is_integer(True)
        (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def check_common(system: Any, max_tokens: Any, degenerate: Any = "scored") -> None:
    """Raises `ValueError` for a system message that is no text, no number of tokens, or what no answer can get."""
    if degenerate not in ("worst", "scored"):
        raise ValueError(f'got degenerate={degenerate!r}; "worst" or "scored" is required.')
    if not isinstance(system, str | None):
        raise ValueError(f"got system={system!r}; a text is required.")
    if not is_integer(max_tokens) or max_tokens < 1:
        raise ValueError(f"got max_tokens={max_tokens!r}; an integer of at least 1 is required.")


def options_from(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a task from `"name=value"`, the value read as JSON where it is JSON.

    Raises:
        SettingsError: something else.

    Example:
        >>> options_from(["sizes=[3, 4]", "operations=+-"])
        {'sizes': (3, 4), 'operations': '+-'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise SettingsError(f"got the task option {text!r}; name=value is required, such as largest=20.")
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            read = value
        found[name] = tuple(read) if isinstance(read, list) else read
    return found
