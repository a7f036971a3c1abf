"""Stop strings: texts that end an answer, whatever tokens they are written with."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["StopStrings", "cut", "stop_strings"]


@dataclass(frozen=True)
class StopStrings:
    """Follows an answer token by token: how much of a stop string its end is.

    Attributes:
        strings: the texts.
        digest: of the table, by which two of these are told apart.
        table: `[states, vocabulary]` int16, the state after a token. State 0 is no part of any string, the last one
            that a string is in the answer, which stays.
    """

    strings: tuple[str, ...]
    digest: str
    table: np.ndarray = field(repr=False, compare=False)

    def after(self, state: jax.Array, token: jax.Array) -> jax.Array:
        """The states `[batch]` after tokens `[batch]`."""
        return jnp.asarray(self.table)[state, token].astype(jnp.int32)

    def ended(self, state: jax.Array) -> jax.Array:
        """Where a string is in the answer."""
        return state == len(self.table) - 1


def stop_strings(tokenizer: Any, strings: Sequence[str], vocabulary: int) -> StopStrings | None:
    """What ends answers of a model at these texts; None for none.

    Args:
        tokenizer: of `transformers`.
        strings: texts, none of them empty.
        vocabulary: tokens that the model knows.
    """
    if not strings:
        return None
    anchor = tokenizer.encode("a", add_special_tokens=False)  # at the start of a text some decoders drop a space
    begin, options = len(tokenizer.decode(anchor)), {"clean_up_tokenization_spaces": False}
    rows = [[*anchor, token] if token < len(tokenizer) else anchor for token in range(vocabulary)]
    return _followed(tuple(strings), tuple(text[begin:] for text in tokenizer.batch_decode(rows, **options)))


def cut(text: str, strings: Sequence[str]) -> str:
    r"""The text up to the first of the strings in it.

    Example:
        >>> cut("four\nUser: and", ["User:", "\n"])
        'four'
    """
    return text[: min((place for string in strings if (place := text.find(string)) >= 0), default=len(text))]


@lru_cache(maxsize=4)
def _followed(strings: tuple[str, ...], texts: tuple[str, ...]) -> StopStrings:
    """By the automaton of Aho and Corasick (1975), whose states are the beginnings of the strings."""
    starts = sorted({string[:size] for string in strings for size in range(len(string))}, key=len)
    number, last = {start: i for i, start in enumerate(starts)}, len(starts)
    steps: dict[tuple[int, str], int] = {}

    def step(state: int, letter: str) -> int:
        if state == last:
            return last
        if (state, letter) not in steps:
            text = starts[state] + letter
            ends = any(text.endswith(string) for string in strings)
            longest = next((text[i:] for i in range(len(text)) if text[i:] in number), "")
            steps[state, letter] = last if ends else number[longest]
        return steps[state, letter]

    differs: dict[str, list[int]] = defaultdict(list)  # states in which a letter does something else than in state 0
    for letter in set("".join(strings)):
        differs[letter] = [state for state in range(1, last) if step(state, letter) != step(0, letter)]
    table = np.zeros((last + 1, len(texts)), np.int16)
    for token, text in enumerate(texts):
        path = [0]
        for letter in text:
            path.append(step(path[-1], letter))
        table[:, token] = path[-1]
        for state in differs.get(text[0], ()) if text else range(last):
            now = state
            for place, letter in enumerate(text, 1):
                now = step(now, letter)
                if now == path[place]:  # and so to the end
                    now = path[-1]
                    break
            table[state, token] = now
    table[last] = last
    return StopStrings(strings, hashlib.sha256(table.tobytes()).hexdigest(), table)
