"""Answers to prompts, token by token with a cache: prefill, then a loop that ends when every row is done."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.sampling import choose
from eggroll.llm.answers.stop_strings import StopStrings
from eggroll.llm.model.decoder import empty_cache
from eggroll.strategy.noise.keys import as_threefry

__all__ = ["WORTH", "Answers", "Decoding", "Generator", "Paused", "generator", "row_keys", "split"]

WORTH = 16  # tokens: for fewer, rows are not put together anew, which copies their caches


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and when a row ends.

    Attributes:
        max_tokens: of an answer, a stop token included.
        temperature: 0 (default) takes the likeliest token; above, tokens are drawn from `softmax(logits/temperature)`.
        top_k: draw among this many likeliest tokens. Default None: all.
        top_p: draw among the likeliest tokens that together have this probability. Default None: all.
        stop: tokens that end an answer. Default none: every answer has `max_tokens`.
        pad: token that fills an answer after its end. Default 0.
        strings: texts that end an answer, from `eggroll.llm.answers.stop_strings.stop_strings`. Default None.

    Raises:
        ValueError: a number outside its range.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[int, ...] = ()
    pad: int = 0
    strings: StopStrings | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(int(token) for token in self.stop))
        limits = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_k": (self.top_k is None or self.top_k >= 1, "None or at least 1"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "None, or above 0 and at most 1"),
        }
        for name, (fits, required) in limits.items():
            if not fits:
                raise ValueError(f"got {name}={getattr(self, name)!r}; {required} is required.")


class Answers(NamedTuple):
    """What a model wrote.

    Attributes:
        tokens: `[..., batch, max_tokens]` int32; `pad` after the end.
        length: `[..., batch]` int32, tokens written, a stop token included.
    """

    tokens: Any
    length: Any


class _Row(NamedTuple):
    """What the loop carries beside the cache: how far it is, and of each row the last token and the answer so far.

    `matched` is how much of a stop string the answer's end is.
    """

    count: Any
    token: Any
    done: Any
    matched: Any
    answers: Answers


class Paused(NamedTuple):
    """Answers of rows that may not be done.

    Attributes:
        row: how far they are.
        cache: of the columns read so far.
        start: `[batch]`, pads of each row.
        keys: of each row, or None.
    """

    row: _Row
    cache: Any
    start: Any
    keys: Any


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Any]:
    """`(graphdef, params)` of a model all of whose state are parameters: what `generator` and `ES.init` take."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError(
            f"got a model with state beside its parameters, {sorted(map(str, nnx.to_flat_state(rest).paths))[:3]}; a "
            "decoder whose state are all nnx.Param is required."
        )
    return graphdef, params


class Generator:
    """Answers prompts: `generator(params, tokens, start, key=None) -> Answers`; made by `eggroll.llm.generator`.

    Attributes:
        graphdef: of the decoder.
        decoding: how tokens are chosen.
        compiled: the same function under `jax.jit`, for one set of parameters.
        begun: `begin` under `jax.jit`, with an axis in front of all that it gives, as of one member.
        gone_on: `go_on` under `jax.jit`, of rows `[n, 1, …]` of one set of parameters.
    """

    def __init__(self, graphdef: nnx.GraphDef, decoding: Decoding) -> None:
        self.graphdef, self.decoding = graphdef, decoding
        self.compiled = jax.jit(self)
        self.begun = jax.jit(lambda *given: jax.tree.map(lambda x: x[None], self.begin(*given)))
        self.gone_on = jax.jit(jax.vmap(self.go_on, in_axes=(None, None, None, 0)))

    def __repr__(self) -> str:
        return f"Generator({self.decoding})"

    def __call__(self, params: PyTree, tokens: jax.Array, start: jax.Array, key: jax.Array | None = None) -> Answers:
        """Answers to the prompts `tokens [batch, time]`, of which row `i` starts after `start[i]` pads.

        Args:
            params: of the decoder.
            tokens: `[batch, time]` int32, padded on the left.
            start: `[batch]` int32, pads of each row.
            key: above temperature 0 a key, or `[batch]` keys. A row draws with its own key, or with its number folded
                into the one key.

        Returns:
            `tokens [batch, max_tokens]` and `length [batch]`.

        Raises:
            ValueError: tokens are to be drawn, and there is no key.
        """
        return self.begin(params, 0, tokens, start, key).row.answers

    def begin(
        self, params: PyTree, live: Any, tokens: jax.Array, start: jax.Array, key: jax.Array | None = None
    ) -> Paused:
        """The answers as far as they are when `live` rows or fewer are not done; for the rest see `__call__`."""
        model, decoding = nnx.merge(self.graphdef, params), self.decoding
        batch, time = tokens.shape
        keys = row_keys(key, decoding, batch)
        cache = empty_cache(model.config, batch, time + decoding.max_tokens - 1, jax.tree.leaves(params)[0].dtype)
        logits, cache = model.extend(tokens, cache, 0, start)
        row = _write(first_row(tokens[:, -1], decoding), logits, keys, decoding)
        return rest_of(model, Paused(row, cache, start, keys), time - 1, decoding, live)

    def go_on(self, params: PyTree, live: Any, count: jax.Array, paused: Paused) -> Paused:
        """More of answers of `count` tokens each, until `live` rows or fewer are not done.

        `count` stands for that of the rows: it is one number where these are batched.
        """
        model, decoding = nnx.merge(self.graphdef, params), self.decoding
        offset = paused.cache.keys.shape[3] - decoding.max_tokens
        return rest_of(model, paused._replace(row=paused.row._replace(count=count)), offset, decoding, live)


def generator(model: nnx.Module | nnx.GraphDef, decoding: Decoding) -> Generator:
    """A function that answers prompts, for `members.apply`, `eggroll.llm.generate`, or alone.

    The same object comes back for the same model and decoding, so that it is compiled once.

    Args:
        model: a decoder, or its graph definition from `eggroll.llm.answers.decoding.split`.
        decoding: how tokens are chosen.

    Returns:
        `fun(params, tokens, start, key=None) -> Answers`.

    Raises:
        ValueError: a model with state beside its parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from eggroll.llm import Decoder, DecoderConfig, Decoding, generator
        >>> from eggroll.llm.answers.decoding import split
        >>> sizes = {"vocabulary": 32, "width": 16, "hidden": 32, "layers": 2, "heads": 2, "key_value_heads": 1}
        >>> graphdef, params = split(Decoder(DecoderConfig(**sizes, head_width=8), rngs=nnx.Rngs(0)))
        >>> fun = generator(graphdef, Decoding(max_tokens=5))
        >>> fun.compiled(params, jnp.array([[0, 3, 4], [7, 8, 9]]), jnp.array([1, 0])).tokens.shape
        (2, 5)
    """
    return _generator(split(model)[0] if isinstance(model, nnx.Module) else model, decoding)


_generator = lru_cache(maxsize=64)(Generator)


def row_keys(key: jax.Array | None, decoding: Decoding, batch: int) -> jax.Array | None:
    """A key for every row; None where nothing is drawn."""
    if decoding.temperature == 0:
        return None
    if key is None:
        raise ValueError(
            f"got no key at temperature={decoding.temperature}; a key is required to draw tokens: fun(params, tokens, "
            "start, key)."
        )
    if key.ndim:
        return jax.vmap(as_threefry)(key)
    return jax.vmap(jax.random.fold_in, (None, 0))(as_threefry(key), jnp.arange(batch))


def first_row(last: jax.Array, decoding: Decoding) -> _Row:
    """Nothing written yet, after prompts that end with the tokens `last [batch]`."""
    tokens = jnp.full((len(last), decoding.max_tokens), decoding.pad, jnp.int32)
    none = jnp.zeros(len(last), jnp.int32)
    return _Row(jnp.int32(0), last.astype(jnp.int32), none > 0, none, Answers(tokens, none))


def rest_of(model: Any, paused: Paused, offset: int, decoding: Decoding, live: Any = 0) -> Paused:
    """Writes until no more than `live` rows are not done: a turn reads each row's last token and chooses the next.

    Args:
        model: the decoder.
        paused: with a row from `first_row`, and a cache of the columns before `offset`; or what this function gave.
        offset: column of the prompts' last token.
        decoding: how tokens are chosen.
        live: rows, of all members that are batched together. Default 0: writes all to their end, as it does where they
            are within `WORTH` tokens of it.
    """
    start, keys = paused.start, paused.keys

    def going(carry: tuple[_Row, Any]) -> jax.Array:
        row = carry[0]
        left = _of_all_members((~row.done).sum(dtype=jnp.int32))
        return (row.count < decoding.max_tokens) & (left > jnp.where(row.count < decoding.max_tokens - WORTH, live, 0))

    def step(carry: tuple[_Row, Any]) -> tuple[_Row, Any]:
        row, cache = carry
        logits, cache = model.extend(row.token[:, None], cache, offset + row.count, start)
        return _write(row, logits, keys, decoding), cache

    row, cache = lax.while_loop(going, step, (paused.row, paused.cache))
    return Paused(row, cache, start, keys)


def _write(row: _Row, logits: jax.Array, keys: jax.Array | None, decoding: Decoding) -> _Row:
    """The row with one more token."""
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, row.count)
    options = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
    token = jnp.where(row.done, decoding.pad, choose(logits, keys, **options))
    tokens = lax.dynamic_update_slice(row.answers.tokens, token[:, None], (0, row.count))
    length = row.answers.length + (~row.done).astype(jnp.int32)
    done = row.done | jnp.isin(token, jnp.array(decoding.stop, jnp.int32))
    matched = row.matched
    if decoding.strings is not None:
        matched = decoding.strings.after(matched, token)
        done |= decoding.strings.ended(matched)
    return _Row(row.count + 1, token, done, matched, Answers(tokens, length))


@jax.custom_batching.custom_vmap
def _of_all_members(live: jax.Array) -> jax.Array:
    """How many rows of all members are not done: one number for all of them.

    With a number of each member's own, `jax.vmap` would run every member to the end of the longest all the same, and
    choose between its old and its new cache at every token, which copies it.
    """
    return live


@_of_all_members.def_vmap
def _(size: int, batched: list[bool], live: jax.Array) -> tuple[jax.Array, bool]:
    return _of_all_members(live.sum(0) if batched[0] else live * size), False
