"""Rotary positions: angles by position, and heads turned by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.llm.model.config import Rope

__all__ = ["angles", "frequencies", "rotate"]


def frequencies(rope: Rope, head_width: int) -> np.ndarray:
    """Radians per position `[head_width / 2]` float32, highest first: θ^(−2i/head_width), scaled as `rope` says.

    Example:
        >>> from eggroll.llm.model.config import Rope
        >>> from eggroll.llm.model.rotary import frequencies
        >>> [round(float(f), 4) for f in frequencies(Rope(theta=10000.0), 8)]
        [1.0, 0.1, 0.01, 0.001]

    References:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv 2104.09864.
    """
    plain = rope.theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    if rope.kind == "llama3":
        wavelength = 2 * np.pi / plain
        keep = (rope.original / wavelength - rope.low) / (rope.high - rope.low)
        plain = plain * (np.clip(keep, 0, 1) + (1 - np.clip(keep, 0, 1)) / rope.factor)
    elif rope.kind == "linear":
        plain = plain / rope.factor
    return plain.astype(np.float32)


def angles(rope: Rope, head_width: int, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine, each `[batch, time, head_width / 2]` float32, of positions `[batch, time]`."""
    angle = positions[..., None].astype(jnp.float32) * frequencies(rope, head_width)
    return jnp.sin(angle), jnp.cos(angle)


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Turns feature i of heads `x [batch, heads, time, head_width]` with feature i + head_width/2, in float32."""
    sin, cos = sin[:, None], cos[:, None]
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
