"""Prompts as tokens, padded on the left, and answers as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from eggroll.llm.answers.stop_strings import cut
from eggroll.llm.answers.templates import SHOWN, Said, as_chats, shown, without_template
from eggroll.training.errors import RunError

__all__ = ["Prompts", "answer_texts", "encode", "pad_left"]


class Prompts(NamedTuple):
    """Prompts of different lengths in one array.

    Attributes:
        tokens: `[n, time]` int32, padded on the left.
        start: `[n]` int32, pads of each row.
    """

    tokens: np.ndarray
    start: np.ndarray


def encode(
    tokenizer: Any,
    prompts: Sequence[Said],
    *,
    system: str | None = None,
    context: int | None = None,
    max_tokens: int = 0,
    pad: int = 0,
    multiple: int = 16,
    template: Mapping[str, Any] | None = None,
    vocabulary: int | None = None,
    date: datetime | None = None,
    chat: bool = True,
    prefix: str = "",
) -> Prompts:
    """Prompts as rows of tokens, through the tokenizer's chat template where it has one.

    The template is a program that came with the model: it runs in a process of its own, within bounds.

    Args:
        tokenizer: of `transformers`.
        prompts: each what the user says, or a conversation: messages with "role" and "content"; at least one.
        system: what stands before those that have no system message of their own; where a template refuses or leaves
            out a system message, and without a template, it is put in front of the prompt. Default None: the
            template's own.
        context: most tokens of a prompt and its answer together. Default None: no limit.
        max_tokens: of an answer, for that limit. Default 0.
        pad: token that fills the left. Default 0.
        multiple: rows are as long as the longest prompt, rounded up to a multiple of this, so that few shapes are
            compiled. Default 16.
        template: further options of the chat template, such as `{"enable_thinking": False}`.
        vocabulary: tokens that the model knows. Default None: not checked.
        date: what a template that writes a date is told. Default None: now.
        chat: whether the tokenizer's chat template is used. Default True.
        prefix: how every answer begins: it stands behind the prompt. Default "".

    Returns:
        Rows in the order of the prompts.

    Raises:
        ValueError: no prompt.
        RunError: one that has no tokens or unknown ones, one that leaves no room for its answer, or a chat template
            that fails, does not end, or leaves out what is said.
    """
    if not prompts:
        raise ValueError("got no prompts; at least one is required.")
    special = not (chat and getattr(tokenizer, "chat_template", None))  # a template writes the special tokens itself
    if special and template:
        raise RunError(
            f"got options of the chat template, {sorted(template)}, for a model that has none; leave them out."
        )
    if special:
        texts = [without_template(prompt, system) for prompt in prompts]
    else:
        texts = as_chats(tokenizer, prompts, system, template or {}, date)
    names = [shown(prompt) for prompt in prompts]
    for name, text in zip(names, texts, strict=True):
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RunError(f"got the prompt {name[:SHOWN]!r} with half a surrogate pair, which is no character.")
    rows: list[list[int]] = tokenizer([text + prefix for text in texts], add_special_tokens=special)["input_ids"]
    _check_lengths(names, [len(row) for row in rows], context, max_tokens)
    if vocabulary is not None:
        _check_tokens(names, rows, vocabulary)
    return pad_left(rows, pad=pad, multiple=multiple)


def pad_left(rows: Sequence[Sequence[int]], *, pad: int = 0, multiple: int = 16) -> Prompts:
    """Rows of tokens of different lengths, padded on the left to the longest, rounded up to a multiple.

    Example:
        >>> pad_left([[5, 6, 7], [8]], multiple=2).tokens.tolist()
        [[0, 5, 6, 7], [0, 0, 0, 8]]
    """
    time = -(-max(len(row) for row in rows) // multiple) * multiple
    tokens = np.full((len(rows), time), pad, np.int32)
    for i, row in enumerate(rows):
        tokens[i, time - len(row) :] = row
    return Prompts(tokens, np.array([time - len(row) for row in rows], np.int32))


def answer_texts(
    tokenizer: Any, answers: Any, *, stop: Collection[int] = (), strings: Sequence[str] = (), prefix: str = ""
) -> list[str]:
    """What was written, as text: stop tokens, special tokens, and what begins with a stop string left out.

    Args:
        tokenizer: of `transformers`.
        answers: `Answers` with any leading axes, such as `[population, prompts]`.
        stop: the stop tokens.
        strings: the stop strings.
        prefix: how every answer begins, which is no part of what was written; see `encode`. Default "".

    Returns:
        One text per row, the last axis running fastest; the prefix is part of it.
    """
    tokens = np.asarray(answers.tokens)
    lengths = np.asarray(answers.length).reshape(-1)
    rows = [row[:n] for row, n in zip(tokens.reshape(-1, tokens.shape[-1]).tolist(), lengths, strict=True)]
    rows = [row[:-1] if row and row[-1] in stop else row for row in rows]
    if not prefix:
        return [cut(text, strings) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    before = tokenizer(prefix, add_special_tokens=False)["input_ids"]  # some decoders drop a space at the beginning
    whole = tokenizer.batch_decode([before + row for row in rows], skip_special_tokens=True)
    alone = tokenizer.batch_decode(rows, skip_special_tokens=True)
    begun = [
        text.removeprefix(prefix) if text.startswith(prefix) else own for text, own in zip(whole, alone, strict=True)
    ]
    return [prefix + cut(text, strings) for text in begun]


def _check_tokens(prompts: Sequence[str], rows: list[list[int]], vocabulary: int) -> None:
    for prompt, row in zip(prompts, rows, strict=True):
        if max(row) >= vocabulary:
            raise RunError(
                f"got the prompt {prompt[:SHOWN]!r} with the token {max(row)}; the model has embeddings for 0 to "
                f"{vocabulary - 1}. Leave what stands for it out of the prompt."
            )


def _check_lengths(prompts: Sequence[str], lengths: list[int], context: int | None, max_tokens: int) -> None:
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        shown = prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + "…"
        if not length:
            raise RunError(f"got prompt {i} ({shown!r}) without tokens; at least one token is required.")
        if context is not None and length + max_tokens > context:
            raise RunError(
                f"got prompt {i} ({shown!r}) of {length} tokens; with an answer of up to {max_tokens} tokens at most "
                f"{context - max_tokens} fit the model's context of {context}. Shorten the prompt or lower max_tokens."
            )
