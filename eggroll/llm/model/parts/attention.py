"""Attention of a layer: who sees whom and from where, queries, keys and values, and what is looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from eggroll.llm.model.features import DecoderConfig, Rope
from eggroll.llm.model.parts.mlp import linear
from eggroll.llm.model.parts.norms import norm
from eggroll.llm.model.parts.rotary import angles, rotate

__all__ = ["View", "attend", "project", "softcapped", "views"]


class View(NamedTuple):
    """What a layer's attention looks at.

    Attributes:
        seen: `[batch, 1, 1, time, length]`, True where a column looks at another.
        sin: of positions, `[batch, time, rotated / 2]`; None without rotary positions.
        cos: the same.
        growth: what queries are multiplied by, `[batch, time]`; None: they stay.
    """

    seen: jax.Array
    sin: Any
    cos: Any
    growth: Any = None


def views(
    config: DecoderConfig, columns: jax.Array, length: int, start: jax.Array, positions: jax.Array, reach: int | None
) -> Callable[[Any, Any], View]:
    """A function of a layer's flags (sliding, rotated) that gives its view.

    Args:
        config: of the decoder.
        columns: `[time]`, numbers of those that look.
        length: how many columns are looked at.
        start: `[batch]` pad columns on the left of each row.
        positions: `[batch, time]`, of the columns that look.
        reach: length of the text that rotary positions are for; None: as far as these reach.
    """
    others = jnp.arange(length)
    seen = ((others <= columns[:, None]) & (others >= start[:, None, None]))[:, None, None]

    def turns(rope: Rope | None) -> tuple[Any, ...]:
        if rope is None:
            return None, None
        growth = 1 + rope.growth * jnp.log1p(positions // rope.original) if rope.growth else None
        return *angles(rope, config.head_width, positions, reach), growth

    full = View(seen, *turns(config.rope))
    local = full
    if config.sliding:
        assert config.window is not None
        near = seen & (others > columns[:, None] - config.window)
        local = View(near, *(turns(config.sliding_rope) if config.sliding_rope else full[1:]))

    def choose(sliding: Any, rotated: Any) -> View:
        view = full
        if config.sliding:
            view = jax.tree.map(lambda a, b: b if a is b else jnp.where(sliding, a, b), local, full)
        if not config.rotated:
            return view
        return view._replace(sin=jnp.where(rotated, view.sin, 0.0), cos=jnp.where(rotated, view.cos, 1.0))

    return choose


def project(config: DecoderConfig, block: Mapping[str, Any], x: jax.Array, view: View) -> tuple[jax.Array, ...]:
    """Query, key and value `[batch, heads, time, head_width]` of `x [batch, time, width]`, the first two rotated."""
    by_head = config.query_key_norm in ("head", "heads")

    def normed(name: str, y: jax.Array) -> jax.Array:
        scale = block.get(f"{name}_norm")
        return norm(config, y, scale[:, None] if config.query_key_norm == "heads" and scale is not None else scale)

    def heads(name: str) -> jax.Array:
        looks = name != "value"
        y = linear(block, name, x)
        y = normed(name, y) if looks and config.query_key_norm == "width" else y
        y = y if config.clip is None else jnp.clip(y, -config.clip, config.clip)
        y = rearrange(y, "batch time (heads width) -> batch heads time width", width=config.head_width)
        y = normed(name, y) if looks and by_head and not config.norm_rotated else y
        if looks and config.rope is not None:
            y = rotate(y, view.sin, view.cos, neighbours=config.rope.neighbours)
        return normed(name, y) if looks and by_head and config.norm_rotated else y

    query = heads("query")
    if view.growth is not None:
        query = (query * view.growth[:, None, :, None]).astype(query.dtype)
    return query, heads("key"), heads("value")


def attend(
    config: DecoderConfig, block: Mapping[str, Any], query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array
) -> jax.Array:
    """Attention `[batch, time, heads · head_width]`, with softmax in float32; keys are not repeated per query head."""
    query = rearrange(query, "batch (n g) time width -> batch n g time width", n=config.key_value_heads)
    scale = config.head_width**-0.5 if config.attention_scale is None else config.attention_scale
    scores = jnp.einsum("bngtk,bnsk->bngts", query, key, preferred_element_type=jnp.float32) * scale
    # Not −∞: a pad column sees nothing, and must not become NaN.
    scores = jnp.where(seen, softcapped(scores, config.attention_softcap), jnp.finfo(jnp.float32).min)
    if config.sinks:
        sinks = rearrange(block["sinks"].astype(jnp.float32), "(n g) -> n g 1 1", n=config.key_value_heads)
        scores = jnp.concatenate([scores, jnp.broadcast_to(sinks, (*scores.shape[:-1], 1))], axis=-1)
    shares = jax.nn.softmax(scores, axis=-1)
    shares = (shares[..., :-1] if config.sinks else shares).astype(value.dtype)
    return rearrange(jnp.einsum("bngts,bnsk->btngk", shares, value), "batch time n g width -> batch time (n g width)")


def softcapped(x: jax.Array, cap: float | None) -> jax.Array:
    """`x` bent towards ± `cap`.

    References:
        Gemma Team, "Gemma 2", arXiv 2408.00118.
    """
    return x if cap is None else cap * jnp.tanh(x / cap)
