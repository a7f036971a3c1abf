"""A causal transformer in plain JAX with a scan over stacked layers: a whole text at once, and token by token.

RMS norms, rotary positions, no biases, an MLP of four times the width, the head apart from the embedding. Every matrix
of every layer lies in one array with the layer as its first axis, as `nn.scan` of Flax leaves it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

EXPANSION, HEADS, VOCABULARY = 4, 4, 256

Cache = tuple[jax.Array, jax.Array]  # keys and values, each [layers, batch, heads, time, features]


def init(key: jax.Array, *, depth: int, width: int, dtype: str = "float32") -> dict[str, Any]:
    """Parameters; every matrix has variance 1/inputs."""
    features = width // HEADS
    keys = iter(jax.random.split(key, 8))

    def draw(inputs: int, *shape: int) -> jax.Array:
        return (jax.random.normal(next(keys), shape) * inputs**-0.5).astype(dtype)

    into, out = (depth, width, HEADS, features), (depth, HEADS, features, width)
    blocks = {
        "norm1": jnp.ones((depth, width), dtype),
        "query": draw(width, *into),
        "key": draw(width, *into),
        "value": draw(width, *into),
        "out": draw(width, *out),
        "norm2": jnp.ones((depth, width), dtype),
        "up": draw(width, depth, width, EXPANSION * width),
        "down": draw(EXPANSION * width, depth, EXPANSION * width, width),
    }
    embed, head = draw(1, VOCABULARY, width), draw(width, width, VOCABULARY)
    return {"embed": embed, "blocks": blocks, "norm": jnp.ones(width, dtype), "head": head}


def forward(params: Any, tokens: jax.Array) -> jax.Array:
    """Logits `[batch, time, vocabulary]` of the next tokens, for tokens `[batch, time]`.

    A list of blocks is written out, layer after layer; stacked ones are scanned over.
    """
    positions = jnp.arange(tokens.shape[1])
    seen = positions[:, None] >= positions

    def layer(x: jax.Array, block: Any) -> tuple[jax.Array, None]:
        query, key, value = project(block, x, positions)
        return finish(block, x, attend(query, key, value, seen)), None

    x, blocks = params["embed"][tokens], params["blocks"]
    if isinstance(blocks, list):
        for block in blocks:
            x, _ = layer(x, block)
    else:
        x, _ = lax.scan(layer, x, blocks)
    return norm(x, params["norm"]) @ params["head"]


def decode(params: Any, prompt: jax.Array, *, tokens: int) -> jax.Array:
    """The likeliest continuation `[tokens]` of a prompt `[length]`, one token at a time with a cache."""
    length = len(prompt) - 1 + tokens
    depth, _, heads, features = params["blocks"]["key"].shape
    empty = jnp.zeros((depth, 1, heads, length, features), params["embed"].dtype)

    def step(carry: tuple[Cache, jax.Array], position: jax.Array) -> tuple[tuple[Cache, jax.Array], jax.Array]:
        cache, last = carry
        given = prompt[jnp.minimum(position, len(prompt) - 1)]
        cache, logits = next_token(params, cache, jnp.where(position < len(prompt), given, last), position)
        token = jnp.argmax(logits).astype(prompt.dtype)
        return (cache, token), token

    _, chosen = lax.scan(step, ((empty, empty), prompt[0]), jnp.arange(length))
    return chosen[len(prompt) - 1 :]


def next_token(params: Any, cache: Cache, token: jax.Array, position: jax.Array) -> tuple[Cache, jax.Array]:
    """The cache with a token `[]` at `position` added, and logits `[vocabulary]` of the one after it."""
    seen = jnp.arange(cache[0].shape[3])[None] <= position

    def layer(carry: tuple[jax.Array, Cache], inputs: tuple[jax.Array, Any]) -> tuple[tuple[jax.Array, Cache], None]:
        # The cache is carried, not scanned over, so that a token writes its own entry and not the whole cache.
        (x, (keys, values)), (index, block) = carry, inputs
        query, key, value = project(block, x, position[None])
        start = (index, 0, 0, position, 0)
        keys = lax.dynamic_update_slice(keys, key[None], start)
        values = lax.dynamic_update_slice(values, value[None], start)
        x = finish(block, x, attend(query, keys[index], values[index], seen))
        return (x, (keys, values)), None

    x = params["embed"][token][None, None]
    layers = jnp.arange(cache[0].shape[0])
    (x, cache), _ = lax.scan(layer, (x, cache), (layers, params["blocks"]))
    return cache, (norm(x, params["norm"]) @ params["head"])[0, 0]


def project(block: Any, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value `[batch, heads, time, features]`, the first two rotated."""
    x = norm(x, block["norm1"])
    query, key, value = (jnp.einsum("btd,dhk->bhtk", x, block[name]) for name in ("query", "key", "value"))
    return rotate(query, positions), rotate(key, positions), value


def attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array) -> jax.Array:
    """Attention `[batch, heads, time, features]`, with softmax in float32; `seen [time, other]` is bool."""
    scores = jnp.einsum("bhtk,bhsk->bhts", query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
    shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", shares, value)


def finish(block: Any, x: jax.Array, attended: jax.Array) -> jax.Array:
    """What a layer makes of its attention: added to the input, then the two dense layers."""
    x = x + jnp.einsum("bhtk,hkd->btd", attended, block["out"])
    return x + jax.nn.gelu(norm(x, block["norm2"]) @ block["up"]) @ block["down"]


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMS norm over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(mean + 1e-6)).astype(x.dtype) * scale


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary positions: `x [batch, heads, time, features]` for `positions [time]`."""
    half = x.shape[-1] // 2
    angle = positions[:, None].astype(jnp.float32) * 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    sin, cos = (f(angle).astype(x.dtype) for f in (jnp.sin, jnp.cos))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)
