"""Answers in segments: where half of the rows are done, the others go on by themselves, in a smaller batch.

On a CPU a turn of the loop takes about as long as reading the weights and multiplying 45 rows by them: with fewer than
`LEAST` rows it is no shorter. A batch has one of few sizes, four to a doubling, as each is compiled; what fills it up
are rows that are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.llm.answers.decoding import WORTH, Answers, Decoding, Paused
from eggroll.llm.model.features import DecoderConfig

__all__ = ["LEAST", "in_segments", "left_at", "padded", "schedule", "worthwhile"]

LEAST = 16  # rows


def worthwhile(rows: int, decoding: Decoding, config: DecoderConfig, time: int) -> bool:
    """Whether a batch of so many rows after prompts of `time` columns can become smaller, and rows write the same then.

    They do not where rotary positions depend on the longest text of a batch.
    """
    ropes = [rope for rope in (config.rope, config.sliding_rope) if rope is not None]
    by_batch = any(
        rope.kind in ("dynamic", "longrope") and time + decoding.max_tokens > rope.original for rope in ropes
    )
    return left_at(rows) > 0 and decoding.max_tokens > WORTH and not by_batch


def padded(rows: int) -> int:
    """The size of a batch that so many rows go on in.

    Example:
        >>> [padded(rows) for rows in (3, 17, 51, 64, 65)]
        [16, 20, 56, 64, 80]
    """
    if rows <= LEAST:
        return LEAST
    step = 1 << max((rows - 1).bit_length() - 3, 0)
    return -(-rows // step) * step


def left_at(rows: int, most: int | None = None) -> int:
    """How many rows of a batch are left when it becomes smaller: half of them, or as many as memory has room for.

    Args:
        rows: of the batch.
        most: that memory has room for, each with noise of its own. Default None: enough.

    Returns:
        The size of a batch; 0 where none is smaller.

    Example:
        >>> [left_at(256), left_at(256, most=60), left_at(32), left_at(31)]
        [128, 56, 16, 0]
    """
    limit = rows // 2 if most is None else min(rows // 2, most)
    return next((size for size in range(limit, LEAST - 1, -1) if padded(size) == size), 0)


def in_segments(
    begin: Callable[[np.int32], Paused],
    go_on: Callable[[np.int32, jax.Array, Paused, np.ndarray], Paused],
    rows: int,
    most: int | None = None,
) -> Answers:
    """Answers of `rows` rows, all of which are written, if not always in the same batch.

    What a row writes depends on what is batched with it no more than by rounding: it brings its cache, its pads and its
    key, and all rows of a batch have written as many tokens.

    Args:
        begin: `(live)` gives all rows as `[members, prompts of each, …]` when at most `live` are not done.
        go_on: `(live, count, paused, chosen)` gives the rows `chosen [n]`, numbered as in `begin`, when at most `live`
            of them are not done; they are `[n, 1, …]`, and have `count` tokens each.
        rows: how many.
        most: rows at once that memory has room for after the first segment.

    Returns:
        `tokens [rows, max_tokens]` and `length [rows]`.
    """
    chosen, live = np.arange(rows), left_at(rows, most)
    paused = begin(np.int32(live))
    tokens, length = (np.array(x).reshape(rows, *x.shape[2:]) for x in paused.row.answers)
    while True:
        open_ = np.flatnonzero(~np.asarray(paused.row.done).reshape(-1))
        count = paused.row.count[0]
        if not len(open_) or int(count) == tokens.shape[1]:
            return Answers(tokens, length)
        done = np.setdiff1d(np.arange(len(chosen)), open_)
        taken = np.concatenate([open_, done[: padded(len(open_)) - len(open_)]])
        chosen, live = chosen[taken], left_at(len(taken), most)
        paused = _rows(paused, taken)  # nothing holds on to the caches of all
        paused = go_on(np.int32(live), count, paused, chosen)
        for whole, own in zip((tokens, length), paused.row.answers, strict=True):
            whole[chosen] = np.asarray(own)[:, 0]


def schedule(lengths: np.ndarray, max_tokens: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """`(rows, turns)` of each segment in which answers of these `lengths [rows]` are written; the first from prompts.

    Example:
        >>> list(schedule(np.array([10] * 205 + [256] * 51), 256))
        [(256, 10), (56, 246)]
    """
    size, begun, left = len(lengths), 0, np.asarray(lengths)
    while len(left):
        live = left_at(size, most) if max_tokens > WORTH else 0
        ends = np.sort(left)[::-1]
        early = int(ends[live]) if live < len(ends) else begun
        until = early if live and early < max_tokens - WORTH else int(ends[0])
        yield size, until - begun
        left, begun = left[left > until], until
        size = padded(len(left))


@jax.jit
def _rows(paused: Paused, taken: Any) -> Paused:
    """Rows of `[members, prompts, …]` by their number, as `[n, 1, …]`."""
    member, prompt = jnp.divmod(taken, paused.start.shape[1])
    row, cache = paused.row, paused.cache  # [members, layers, prompts, …]
    cache = jax.tree.map(lambda x: x[member, :, prompt][:, :, None], cache)
    row, start, keys = jax.tree.map(
        lambda x: x[member] if x.ndim == 1 else x[member, prompt][:, None], (row, paused.start, paused.keys)
    )
    return Paused(row, cache, start, keys)
