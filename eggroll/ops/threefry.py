"""threefry2x32 in plain 32-bit operations: the words of `jax.random`, wherever they are needed.

References:
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11: Threefry-2x32-20.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry2x32(key: tuple[ArrayLike, ArrayLike], count: tuple[ArrayLike, ArrayLike]) -> tuple[jax.Array, jax.Array]:
    """Encrypts counters: 20 rounds, five key injections.

    Args:
        key: the two halves of a key, uint32.
        count: the two halves of a counter, uint32; all four broadcast against one another.

    Returns:
        Two uint32 arrays. `jax.random.bits(key, (n,), "uint32")[i]` is their xor for the counter `(0, i)`, and
        `jax.random.fold_in(key, i)` is the two themselves.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> key = jax.random.key(0, impl="threefry2x32")
        >>> first, second = threefry2x32(tuple(jax.random.key_data(key)), (np.uint32(0), jnp.arange(4, dtype="uint32")))
        >>> bool(jnp.all(first ^ second == jax.random.bits(key, (4,), "uint32")))
        True
    """
    key0, key1 = (jnp.asarray(half) for half in key)
    schedule = key0, key1, key0 ^ key1 ^ _PARITY
    first, second = jnp.asarray(count[0]) + key0, jnp.asarray(count[1]) + key1
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            first = first + second
            second = first ^ _rotated(second, turn)
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def _rotated(x: jax.Array, left: int) -> jax.Array:
    return (x << np.uint32(left)) | (x >> np.uint32(32 - left))
