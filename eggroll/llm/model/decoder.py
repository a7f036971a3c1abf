"""One Flax decoder for Llama, Qwen 2, Qwen 3 and Gemma 3, with a scan over stacked layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax

from eggroll.engine.annotations import PyTree
from eggroll.llm.model.config import DecoderConfig
from eggroll.llm.model.rotary import angles, rotate

__all__ = ["Cache", "Decoder", "empty_cache", "layer_shapes"]

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": jax.nn.gelu,
}


class Cache(NamedTuple):
    """Keys and values of the columns so far, each `[layers, batch, key_value_heads, length, head_width]`."""

    keys: jax.Array
    values: jax.Array


def empty_cache(config: DecoderConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """A cache with room for `length` columns; `dtype` is the weights'."""
    shape = (config.layers, batch, config.key_value_heads, length, config.head_width)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The weights of a layer by name; a matrix is `[inputs, outputs]`."""
    width, hidden = config.width, config.hidden
    inner, shared = config.heads * config.head_width, config.key_value_heads * config.head_width
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (width,),
        "query": (width, inner),
        "key": (width, shared),
        "value": (width, shared),
        "out": (inner, width),
        "mlp_norm": (width,),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    if config.biases:
        shapes |= {"query_bias": (inner,), "key_bias": (shared,), "value_bias": (shared,)}
    if config.head_norms:
        shapes |= {"query_norm": (config.head_width,), "key_norm": (config.head_width,)}
    if config.gemma:
        shapes |= {"attention_post_norm": (width,), "mlp_post_norm": (width,)}
    return shapes


class Layers(nnx.Module):
    """The weights of all layers, each an `nnx.Param` `[layers, …]`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: Any) -> None:
        for name, shape in layer_shapes(config).items():
            shape = (config.layers, *shape)
            if name.endswith("norm"):
                weight = jnp.full(shape, 0.0 if config.gemma else 1.0, dtype)
            elif name.endswith("bias"):
                weight = jnp.zeros(shape, dtype)
            else:
                weight = _draw(rngs, shape, shape[1], dtype)
            setattr(self, name, nnx.Param(weight))


class Decoder(nnx.Module):
    """A causal language model: RMS norms, rotary positions, grouped queries, gated MLP.

    Every weight is an `nnx.Param`, and layers are stacked on a leading axis, so that one layer is compiled however many
    there are. Prompts of different lengths are padded on the left: `start` is the number of pad columns of each row,
    and what stands there is never looked at. Norms, softmax and rotation are in float32, all else in the weights'
    dtype.

    Args:
        config: sizes and switches.
        rngs: draws matrices of variance 1/inputs; norms are 1, biases 0.
        dtype: of the weights. Default float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from eggroll.llm import Decoder, DecoderConfig
        >>> config = DecoderConfig(64, 16, 32, layers=2, heads=4, key_value_heads=2, head_width=4)
        >>> model = Decoder(config, rngs=nnx.Rngs(0))
        >>> model(jnp.array([[3, 14, 15]])).shape
        (1, 3, 64)

    References:
        Touvron et al., "Llama 2", arXiv 2307.09288. Yang et al., "Qwen2.5", arXiv 2412.15115, and "Qwen3", arXiv
        2505.09388. Gemma Team, "Gemma 3", arXiv 2503.19786.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        self.config = config
        self.embed = nnx.Param(_draw(rngs, (config.vocabulary, config.width), config.width, dtype))
        self.layers = Layers(config, rngs=rngs, dtype=dtype)
        self.norm = nnx.Param(jnp.full(config.width, 0.0 if config.gemma else 1.0, dtype))
        if not config.tied:
            self.head = nnx.Param(_draw(rngs, (config.width, config.vocabulary), config.width, dtype))

    def __call__(self, tokens: jax.Array, start: jax.Array | None = None) -> jax.Array:
        """Logits of the token after each.

        Args:
            tokens: `[batch, time]` integers.
            start: `[batch]` pad columns on the left of each row; None: none.

        Returns:
            `[batch, time, vocabulary]` float32; those of pad columns mean nothing, but are finite.
        """
        x, _ = self._hidden(tokens, None, 0, start)
        return self._logits(x)

    def extend(
        self, tokens: jax.Array, cache: Cache, offset: jax.Array | int, start: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Adds columns to a cache, and gives the logits after the last.

        Args:
            tokens: `[batch, time]` integers: a whole prompt, or one token per row.
            cache: keys and values of the columns before `offset`.
            offset: column of `tokens[:, 0]`. As a Python number it saves looking at columns not yet written.
            start: `[batch]` pad columns on the left of each row; None: none.

        Returns:
            Logits `[batch, vocabulary]` float32, and the cache with the new columns written.
        """
        x, cache = self._hidden(tokens, cache, offset, start)
        return self._logits(x[:, -1]), cache

    def _hidden(self, tokens: jax.Array, cache: Any, offset: jax.Array | int, start: jax.Array | None) -> Any:
        """The last layer's output `[batch, time, width]`, normed, and the cache."""
        config = self.config
        embed = self.embed[...]
        x = embed[tokens]
        if config.gemma:
            x = x * jnp.asarray(config.width**0.5, x.dtype)
        length = _seen_length(tokens, cache, offset)
        choose = _views(config, tokens.shape, length, offset, start)
        weights = {name: getattr(self.layers, name)[...] for name in layer_shapes(config)}
        layers = (np.arange(config.layers), np.array(config.sliding or (False,) * config.layers))

        def layer(carry: PyTree, inputs: Any) -> tuple[Any, None]:
            (x, cache), (index, sliding, block) = carry, inputs
            seen, sin, cos = choose(sliding)
            query, key, value = _project(config, block, x, sin, cos)
            if cache is not None:
                # Carried, not scanned over, so that a token writes its own entry and not the whole cache.
                where = (index, 0, 0, offset, 0)
                cache = Cache(
                    *(
                        lax.dynamic_update_slice(old, new[None], where)
                        for old, new in zip(cache, (key, value), strict=True)
                    )
                )
                key, value = (lax.dynamic_index_in_dim(kept, index, keepdims=False)[:, :, :length] for kept in cache)
            return (_finish(config, block, x, _attend(config, query, key, value, seen)), cache), None

        (x, cache), _ = lax.scan(layer, (x, cache), (*layers, weights))
        return _norm(config, x, self.norm[...]), cache

    def _logits(self, x: jax.Array) -> jax.Array:
        if self.config.tied:
            return jnp.einsum("...d,vd->...v", x, self.embed[...], preferred_element_type=jnp.float32)
        return jnp.einsum("...d,dv->...v", x, self.head[...], preferred_element_type=jnp.float32)


def _draw(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int, dtype: Any) -> jax.Array:
    return (jax.random.normal(rngs.params(), shape) * inputs**-0.5).astype(dtype)


def _seen_length(tokens: jax.Array, cache: Any, offset: jax.Array | int) -> int:
    """Columns that attention looks at."""
    if cache is None:
        return tokens.shape[1]
    return offset + tokens.shape[1] if isinstance(offset, int) else cache.keys.shape[3]


def _views(config: DecoderConfig, shape: tuple[int, ...], length: int, offset: Any, start: Any) -> Any:
    """A function of a layer's `sliding` → what it sees `[batch, 1, 1, time, length]`, sine and cosine of positions."""
    start = jnp.zeros(shape[0], jnp.int32) if start is None else start
    columns, others = offset + jnp.arange(shape[1]), jnp.arange(length)
    positions = jnp.maximum(columns - start[:, None], 0)
    seen = (others <= columns[:, None]) & (others >= start[:, None, None])
    full = (seen[:, None, None], *angles(config.rope, config.head_width, positions))
    if not config.sliding:
        return lambda sliding: full
    assert config.window is not None
    near = seen & (others > columns[:, None] - config.window)
    rope = config.sliding_rope or config.rope
    local = (near[:, None, None], *angles(rope, config.head_width, positions))
    return lambda sliding: tuple(jnp.where(sliding, a, b) for a, b in zip(local, full, strict=True))


def _project(config: DecoderConfig, block: Any, x: jax.Array, sin: Any, cos: Any) -> tuple[jax.Array, ...]:
    """Query, key and value `[batch, heads, time, head_width]`, the first two rotated."""
    x = _norm(config, x, block["attention_norm"])

    def heads(name: str) -> jax.Array:
        y = x @ block[name]
        y = y + block[f"{name}_bias"] if config.biases else y
        y = rearrange(y, "batch time (heads width) -> batch heads time width", width=config.head_width)
        return _norm(config, y, block[f"{name}_norm"]) if config.head_norms and name != "value" else y

    return rotate(heads("query"), sin, cos), rotate(heads("key"), sin, cos), heads("value")


def _attend(config: DecoderConfig, query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array) -> jax.Array:
    """Attention `[batch, time, heads · head_width]`, with softmax in float32; keys are not repeated per query head."""
    query = rearrange(query, "batch (n g) time width -> batch n g time width", n=config.key_value_heads)
    scale = config.head_width**-0.5 if config.attention_scale is None else config.attention_scale
    scores = jnp.einsum("bngtk,bnsk->bngts", query, key, preferred_element_type=jnp.float32) * scale
    # Not −∞: a pad column sees nothing, and must not become NaN.
    shares = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(value.dtype)
    return rearrange(jnp.einsum("bngts,bnsk->btngk", shares, value), "batch time n g width -> batch time (n g width)")


def _finish(config: DecoderConfig, block: Any, x: jax.Array, attended: jax.Array) -> jax.Array:
    """What a layer makes of its attention: added to the input, then the gated MLP."""

    def add(x: jax.Array, y: jax.Array, name: str) -> jax.Array:
        return x + (_norm(config, y, block[name]) if config.gemma else y)

    x = add(x, attended @ block["out"], "attention_post_norm")
    y = _norm(config, x, block["mlp_norm"])
    y = ACTIVATIONS[config.activation](y @ block["gate"]) * (y @ block["up"])
    return add(x, y @ block["down"], "mlp_post_norm")


def _norm(config: DecoderConfig, x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMS norm over the last axis, in float32; Gemma scales by 1 + weight before it rounds, the others after."""
    wide = x.astype(jnp.float32)
    wide = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + config.epsilon)
    if config.gemma:
        return (wide * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
    return wide.astype(x.dtype) * scale
