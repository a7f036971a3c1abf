"""Rows to problems: which column is the prompt, conversations, and what is said of it."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eggroll.llm.tasks.base import Problem
from eggroll.llm.tasks.reading import KNOWN, WIDE, Row, read_rows, short
from eggroll.training.errors import RunError

ROLES = ("system", "user", "assistant", "tool")
PROMPT = 'a text or a list of messages such as [{"role": "user", "content": "2 + 2 ="}] is required'
LIKE_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']""")


class Read(NamedTuple):
    """The problems of a file, and in words what its columns were taken for."""

    problems: list[Problem]
    said: str


def read_prompts(path: Path, column: str | None = None) -> Read:
    """The problems of a file or folder; what each row holds is its problem's data.

    Args:
        path: see `eggroll.llm.tasks.reading.read_rows`.
        column: the column of prompts. Default None: "prompt", else the one of "messages" and "question" that is there.

    Raises:
        RunError: no such file, another form, no prompts, or a row that is not as required, with its place.
    """
    rows = read_rows(path)
    if not rows:
        raise RunError(f"{path} holds no prompts; one a line is required.")
    names = list(dict.fromkeys(name for row in rows for name in row.fields))
    column = _chosen(path, names, column)
    problems = [_problem(path, row, column) for row in rows]
    counts = Counter(name for row in rows for name, value in row.fields.items() if value is not None)
    others = [
        f"{name or '(unnamed)'!r}" + (f" (in {counts[name]} rows)" if counts[name] < len(rows) else "")
        for name in names
        if name != column
    ]
    taken = sum(1 for row, problem in zip(rows, problems, strict=True) if problem.data is not row.fields)
    said = (
        f"{path}: {len(rows)} prompts from column {column!r}; the reward gets {', '.join(others) or 'no other column'}"
    )
    if taken:
        at = column if "answer" in names else "answer"
        said += f"; the assistant's message that ends {taken} conversations is not asked: it is in data[{at!r}]"
    return Read(problems, said)


def _chosen(path: Path, names: Sequence[str], column: str | None) -> str:
    """The column of prompts."""
    there = f"it has {', '.join(repr(name[:WIDE]) for name in names)}"
    if column is not None:
        if column not in names:
            raise RunError(f"{path} has no column {column!r} for the prompts; {there}.")
        return column
    found = [name for known in KNOWN for name in names if name.lower() == known]
    first = [name for name in found if name.lower() == KNOWN[0]]
    if len(first or found) == 1:
        return (first or found)[0]
    said = (
        f"has several columns that may be the prompt, {', '.join(map(repr, first or found))}"
        if found
        else (
            f"has no column {', '.join(map(repr, KNOWN[:-1]))} or {KNOWN[-1]!r}; {there}; names stand in the first row"
        )
    )
    raise RunError(f"{path} {said}. Say which is the prompt with prompt_column (--prompt-column).")


def _problem(path: Path, row: Row, column: str) -> Problem:
    """The problem of a row; what a conversation ends with is its answer, if it is the assistant's."""
    value: Any = row.fields.get(column)
    try:
        if isinstance(value, str) and LIKE_MESSAGES.match(value):
            value = _parsed(value)
        if isinstance(value, str):
            return Problem(_sound(value), row.fields)
        messages = _messages(value)
    except (ValueError, RecursionError) as why:
        said = f" ({why})" if str(why) else ""
        raise RunError(f"{row.place} of {path} is {short(row.fields)}{said}; for {column!r}, {PROMPT}.") from None
    fields = row.fields
    if messages[-1]["role"] == "assistant" and column.lower() != KNOWN[0]:
        fields = {"answer": messages.pop()["content"], **row.fields}
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise RunError(
            f"{row.place} of {path} has a conversation in {column!r} that ends with a message of "
            f"{messages[-1]['role'] if messages else 'nobody'!r}; the last has to be the user's, which the model "
            "answers. Take out what follows it (--answer-prefix gives answers a beginning)."
        )
    if len(messages) == 1:
        return Problem(messages[0]["content"], fields, tuple(messages))
    return Problem("\n\n".join(f"{m['role']}: {m['content']}" for m in messages), fields, tuple(messages))


def _parsed(text: str) -> Any:
    """Messages in a cell: JSON, or as Python writes them."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError):
            raise ValueError("messages that are no JSON") from None


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        raise ValueError("")
    return [_message({name: x for name, x in message.items() if x is not None}) for message in value]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"a message whose role is {role!r}, not one of {', '.join(ROLES)}")
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"a message whose content is {str(content)[:WIDE]!r}, not a text")
    return {**message, "content": content if role in ("system", "assistant") else _sound(content)}


def _sound(text: str) -> str:
    """The text, unless it is blank or has half a surrogate pair, which is no character."""
    if not text.strip():
        raise ValueError("")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half a surrogate pair")
    return text
