"""Norms over the last axis, in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.llm.model.features import DecoderConfig

__all__ = ["norm"]


def norm(config: DecoderConfig, x: jax.Array, scale: Any = None, bias: Any = None) -> jax.Array:
    """RMS norm, or layer norm, of `x`, then scaled and shifted where there are weights for it.

    A plain RMS norm rounds to the dtype of `x` before it is scaled, the others after, as their families do.

    References:
        Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467. Ba, Kiros, Hinton, "Layer
        Normalization", arXiv 1607.06450.
    """
    wide = x.astype(jnp.float32)
    if config.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + config.epsilon)
    if scale is None:
        return wide.astype(x.dtype)
    if config.norm == "rms" and not config.norm_offset:
        return wide.astype(x.dtype) * scale
    wide = wide * (config.norm_offset + scale.astype(jnp.float32))
    return (wide if bias is None else wide + bias.astype(jnp.float32)).astype(x.dtype)
