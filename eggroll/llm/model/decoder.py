"""One Flax decoder whose features a configuration says, with a scan over stacked layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from eggroll.engine.annotations import PyTree
from eggroll.llm.model.features import DecoderConfig
from eggroll.llm.model.parts.attention import attend, project, softcapped, views
from eggroll.llm.model.parts.mlp import linear, mlp
from eggroll.llm.model.parts.norms import norm
from eggroll.llm.model.parts.shapes import adapter_shapes, layer_shapes, outer_shapes, starts_at

__all__ = ["Cache", "Decoder", "empty_cache"]


class Cache(NamedTuple):
    """Keys and values of the columns so far, each `[layers, batch, key_value_heads, length, head_width]`.

    Where a text may outgrow what longrope's first divisors are for, layers stand there twice: as they see a short text
    and as they see a long one, since all keys change with its length.
    """

    keys: jax.Array
    values: jax.Array


def empty_cache(config: DecoderConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """A cache with room for `length` columns; `dtype` is the weights'."""
    shape = (len(_readings(config, length)) * config.layers, batch, config.key_value_heads, length, config.head_width)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class Layers(nnx.Module):
    """The weights of all layers, each an `nnx.Param` `[layers, …]`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: Any) -> None:
        for name, shape in (layer_shapes(config) | adapter_shapes(config)).items():
            setattr(self, name, nnx.Param(_drawn(config, rngs, name, (config.layers, *shape), dtype)))


class Decoder(nnx.Module):
    """A causal language model of the features that a configuration names.

    Every weight is an `nnx.Param`, and layers are stacked on a leading axis, so that one layer is compiled however many
    there are. No family has a branch of its own. Prompts of different lengths are padded on the left: `start` is the
    number of pad columns of each row, and what stands there is never looked at. Norms, softmax and rotation are in
    float32, all else in the weights' dtype.

    Args:
        config: sizes and switches.
        rngs: draws matrices of variance 1/inputs; norms scale by 1, biases are 0.
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

    # Weights that some configurations have.
    norm: nnx.Param
    norm_bias: nnx.Param
    positions: nnx.Param
    head: nnx.Param
    head_bias: nnx.Param

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        self.config = config
        shapes = outer_shapes(config)
        self.embed = nnx.Param(_drawn(config, rngs, "embed", shapes.pop("embed"), dtype))
        self.layers = Layers(config, rngs=rngs, dtype=dtype)
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(_drawn(config, rngs, name, shape, dtype)))

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
        readings = _readings(self.config, cache.keys.shape[3])
        if len(readings) == 1:
            x, cache = self._hidden(tokens, cache, offset, start)
            return self._logits(x[:, -1]), cache
        split = [Cache(*halves) for halves in zip(*(jnp.split(part, 2) for part in cache), strict=True)]
        (short, first), (long, second) = (
            self._hidden(tokens, half, offset, start, reach) for half, reach in zip(split, readings, strict=True)
        )
        reach = offset + tokens.shape[1] - (0 if start is None else start.min())
        x = jnp.where(reach > readings[0], long[:, -1], short[:, -1])
        return self._logits(x), Cache(*(jnp.concatenate(parts) for parts in zip(first, second, strict=True)))

    def _hidden(
        self, tokens: jax.Array, cache: Any, offset: jax.Array | int, start: jax.Array | None, reach: int | None = None
    ) -> Any:
        """The last layer's output `[batch, time, width]`, normed, and the cache; `reach`: as of a text so long."""
        config = self.config
        start = jnp.zeros(len(tokens), jnp.int32) if start is None else start
        columns = offset + jnp.arange(tokens.shape[1])
        positions = jnp.maximum(columns - start[:, None], 0)
        x = _scaled(self.embed[...][tokens], config.embed_scale)
        x = x + self.positions[...][positions] if config.positions else x
        length = _seen_length(tokens, cache, offset)
        choose = views(config, columns, length, start, positions, reach)
        weights = {name: getattr(self.layers, name)[...] for name in layer_shapes(config) | adapter_shapes(config)}
        if config.lora is not None:
            scale = config.lora.scale
            weights |= {name: _scaled(x, scale) for name, x in weights.items() if name.endswith("_lora_b")}
        flags = (
            np.array(config.sliding or (False,) * config.layers),
            np.array(config.rotated or (True,) * config.layers),
        )

        def layer(carry: PyTree, inputs: Any) -> tuple[Any, None]:
            (x, cache), (index, sliding, rotated, block) = carry, inputs
            view = choose(sliding, rotated)

            def attention(x: jax.Array) -> tuple[jax.Array, Any]:
                query, key, value = project(config, block, x, view)
                key, value, kept = _looked_up(cache, (key, value), index, offset, length)
                return linear(block, "out", attend(config, block, query, key, value, view.seen)), kept

            return _layer(config, block, x, attention), None

        (x, cache), _ = lax.scan(layer, (x, cache), (np.arange(config.layers), *flags, weights))
        last = [getattr(self, name)[...] for name in ("norm", "norm_bias") if hasattr(self, name)]
        return norm(config, x, *last), cache

    def _logits(self, x: jax.Array) -> jax.Array:
        config = self.config
        if config.tied:
            y = jnp.einsum("...d,vd->...v", x, self.embed[...], preferred_element_type=jnp.float32)
        else:
            y = jnp.einsum("...d,dv->...v", x, self.head[...], preferred_element_type=jnp.float32)
        y = y + self.head_bias[...] if "head" in config.biases else y
        return softcapped(y if config.logits_scale == 1 else y * config.logits_scale, config.logits_softcap)


def _drawn(config: DecoderConfig, rngs: nnx.Rngs, name: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A weight's first value."""
    value = starts_at(config, name)
    if value is not None:
        return jnp.full(shape, value, dtype)
    inputs = shape[-1] if name in ("embed", "positions") else shape[-2]
    return (jax.random.normal(rngs.params(), shape) * inputs**-0.5).astype(dtype)


def _readings(config: DecoderConfig, length: int) -> tuple[int, ...]:
    """Lengths of text, one of each kind that rotary positions tell apart and that a cache of this length may hold."""
    ropes = [rope for rope in (config.rope, config.sliding_rope) if rope is not None and rope.kind == "longrope"]
    if not ropes or length <= ropes[0].original:
        return (length,)
    return ropes[0].original, ropes[0].original + 1


def _scaled(x: jax.Array, scale: float) -> jax.Array:
    """A product that is rounded as often as the families round it: the scale, too."""
    return x if scale == 1 else x * jnp.asarray(scale, x.dtype)


def _seen_length(tokens: jax.Array, cache: Any, offset: jax.Array | int) -> int:
    """Columns that attention looks at."""
    if cache is None:
        return tokens.shape[1]
    return offset + tokens.shape[1] if isinstance(offset, int) else cache.keys.shape[3]


def _looked_up(
    cache: Any, new: tuple[jax.Array, jax.Array], index: Any, offset: Any, length: int
) -> tuple[Any, Any, Any]:
    """Keys and values of the columns that a layer looks at, and the cache with the new ones written."""
    if cache is None:
        return *new, None
    # Carried, not scanned over, so that a token writes its own entry and not the whole cache.
    where = (index, 0, 0, offset, 0)
    cache = Cache(*(lax.dynamic_update_slice(old, own[None], where) for old, own in zip(cache, new, strict=True)))
    key, value = (lax.dynamic_index_in_dim(kept, index, keepdims=False)[:, :, :length] for kept in cache)
    return key, value, cache


def _layer(config: DecoderConfig, block: Any, x: jax.Array, attention: Any) -> tuple[jax.Array, Any]:
    """The stream after a layer, and what attention gives beside its output."""

    def before(x: jax.Array, name: str) -> jax.Array:
        return norm(config, x, block.get(name), block.get(f"{name}_bias")) if name in config.norms else x

    def after(y: jax.Array, name: str) -> jax.Array:
        return _scaled(before(y, name), config.residual_scale)

    normed = before(x, "attention_norm")
    attended, kept = attention(normed)
    attended = after(attended, "attention_post_norm")
    if config.parallel:
        read = before(x, "mlp_norm") if "mlp_norm" in config.norms else normed
        return x + attended + after(mlp(config, block, read), "mlp_post_norm"), kept
    x = x + attended
    return x + after(mlp(config, block, before(x, "mlp_norm")), "mlp_post_norm"), kept
