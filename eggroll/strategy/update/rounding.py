"""Stochastic rounding to half precision: right on average, so that small updates are not lost, and without a copy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.strategy.noise.threefry import words_from

ROUNDING = 3  # a parameter's stream for it, beside LEFT, RIGHT and DENSE


def rounded_block(value: jax.Array, dtype: Any, key: jax.Array, start: Any) -> jax.Array:
    """Rounds to one of the two neighbours in `dtype`, with the probabilities that make the mean `value`.

    In integers throughout: compilers leave out a conversion to half precision and back.

    Args:
        value: `[n]` float32.
        dtype: bfloat16 or float16.
        key: `[2]`, the parameter's.
        start: which of the parameter's elements is the first.

    Returns:
        `[n]` of `dtype`. What `dtype` can hold stays as it is; what is finite stays finite.

    References:
        S. Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv 1502.02551.
    """
    info = jnp.finfo(dtype)
    random = words_from(key, start, value.shape[0])
    raw = lax.bitcast_convert_type(value, jnp.uint32)
    sign, size = (raw >> np.uint32(16)) & np.uint32(0x8000), raw & np.uint32(0x7FFFFFFF)
    dropped = 23 - info.nmant
    bits = (size + (random >> np.uint32(32 - dropped))) >> np.uint32(dropped)
    if info.nexp < 8:  # another bias of the exponent, and subnormal numbers, whose bits count the smallest one
        bits = bits - np.uint32((127 + int(info.minexp) - 1) << info.nmant)
        share = (random >> np.uint32(8)).astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-24)
        counted = jnp.abs(value) / np.float32(info.smallest_subnormal) + share
        small = jnp.abs(value) < np.float32(info.tiny)
        bits = jnp.where(small, jnp.where(small, counted, 0).astype(jnp.int32).astype(jnp.uint32), bits)
    largest = lax.bitcast_convert_type(np.array(info.max, dtype), jnp.uint16).astype(jnp.uint32)
    rounded = lax.bitcast_convert_type((sign | jnp.minimum(bits, largest)).astype(jnp.uint16), dtype)
    return jnp.where(jnp.isfinite(value), rounded, value.astype(dtype))
