"""Rotary positions: angles by position, and heads turned by them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.llm.model.features import Rope

__all__ = ["angles", "frequencies", "rotate"]


def frequencies(rope: Rope, head_width: int, reach: Any = 0) -> Any:
    """Radians per position `[rotated / 2]` float32, highest first: θ^(−2i/rotated), scaled as `rope` says.

    Args:
        rope: of the layer.
        head_width: features of a head.
        reach: tokens of the text so far, which `"dynamic"` and `"longrope"` depend on. Default 0: a short one.

    Example:
        >>> from eggroll.llm.model.config import Rope
        >>> from eggroll.llm.model.parts.rotary import frequencies
        >>> [round(float(f), 4) for f in frequencies(Rope(theta=10000.0), 8)]
        [1.0, 0.1, 0.01, 0.001]

    References:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv 2104.09864. Peng et al.,
        "YaRN: Efficient Context Window Extension of Large Language Models", arXiv 2309.00071. Ding et al., "LongRoPE:
        Extending LLM Context Window Beyond 2 Million Tokens", arXiv 2402.13753.
    """
    width = rope.width(head_width)
    exponents = np.arange(0, width, 2, dtype=np.float64) / width
    plain = rope.theta**-exponents
    if rope.kind == "dynamic":
        longer = jnp.maximum(reach, rope.original) / rope.original
        stretch = (rope.factor * longer - (rope.factor - 1)) ** (width / (width - 2))
        return plain.astype(np.float32) * stretch ** -exponents.astype(np.float32)
    if rope.kind == "longrope":
        short, long = ((plain / np.array(divisors)).astype(np.float32) for divisors in (rope.short, rope.long))
        return jnp.where(reach > rope.original, long, short)
    if rope.kind == "linear":
        plain = plain / rope.factor
    elif rope.kind in ("llama3", "yarn"):
        keep = np.clip(_of_llama3(rope, plain) if rope.kind == "llama3" else _of_yarn(rope, width), 0, 1)
        plain = plain * (keep + (1 - keep) / rope.factor)
    return plain.astype(np.float32)


def _of_llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """How far each frequency is kept, by how often it turns in the first training's texts."""
    turns = rope.original * plain / (2 * np.pi)
    return (turns - rope.low) / (rope.high - rope.low)


def _of_yarn(rope: Rope, width: int) -> np.ndarray:
    """How far each frequency is kept, by its number between those that turn `high` times and `low` times."""

    def number(turns: float) -> float:
        return width * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = number(rope.high), number(rope.low)
    if rope.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last
    return 1 - (np.arange(width // 2) - first) / (last - first)


def angles(rope: Rope, head_width: int, positions: jax.Array, reach: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine, each `[batch, time, rotated / 2]` float32, of positions `[batch, time]`.

    They are those of a text of length `reach`; None: one as long as these positions reach.
    """
    reached = positions.max() + 1 if reach is None else reach
    angle = positions[..., None].astype(jnp.float32) * frequencies(rope, head_width, reached)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return (sin, cos) if rope.magnitude == 1 else (sin * rope.magnitude, cos * rope.magnitude)


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array, *, neighbours: bool = False) -> jax.Array:
    """Turns pairs of the first features of heads `x [batch, heads, time, head_width]`, in float32.

    Feature i is turned with i + rotated/2, or, as `neighbours`, 2i with 2i + 1; those that no angle is for stay.
    """
    sin, cos = sin[:, None], cos[:, None]
    wide, half = x.astype(jnp.float32), sin.shape[-1]
    rest = [wide[..., 2 * half :]] if 2 * half < x.shape[-1] else []
    wide = wide[..., : 2 * half]
    left, right = (wide[..., 0::2], wide[..., 1::2]) if neighbours else jnp.split(wide, 2, axis=-1)
    turned = [left * cos - right * sin, right * cos + left * sin]
    if neighbours:
        turned = [jnp.stack(turned, axis=-1).reshape(wide.shape)]
    return jnp.concatenate([*turned, *rest], axis=-1).astype(x.dtype)
