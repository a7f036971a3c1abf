"""Random words → noise, a pure function of (key, parameter path, member pair, element).

Element `e` of a draw is bit `e mod 32` of word `⌊e/32⌋` (rademacher) or half `e mod 2` of word `⌊e/2⌋` (normal), and
words are threefry of their number, as `jax.random.bits` gives them. So the same numbers come out jitted or not,
under `vmap`, in chunks of any size, on any number of devices, and a kernel can make them where it needs them.

References:
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11 (threefry).
    B. Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652 (low-rank perturbations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from eggroll.ops.normal import standard_normal

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
    return _encrypted(*key, *count)


@partial(jax.jit, inline=True)  # traced once for each shape: its 130 operations are most of what tracing a step takes
def _encrypted(key0: jax.Array, key1: jax.Array, count0: jax.Array, count1: jax.Array) -> tuple[jax.Array, jax.Array]:
    schedule = key0, key1, key0 ^ key1 ^ _PARITY
    first, second = count0 + key0, count1 + key1
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            first = first + second
            second = first ^ _rotated(second, turn)
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def _rotated(x: jax.Array, left: int) -> jax.Array:
    # Primitives, not operators, which take JAX thrice as long to trace: these are half of all operations.
    return lax.bitwise_or(lax.shift_left(x, np.uint32(left)), lax.shift_right_logical(x, np.uint32(32 - left)))


@dataclass(frozen=True)
class Distribution:
    """How random bits become numbers of zero mean and unit variance; entered in `DISTRIBUTIONS` by its name.

    Args:
        name: what users, ledgers and `Seeded` call it.
        bits: random bits a number: 1, 2, 4, 8, 16 or 32, so that no number lies in two words.
        numbers: uint32 fields of so many bits, of any shape, and a dtype → numbers of that dtype, those of float32
            rounded.
        integers: True if the numbers are integers from −127 to 127, which every signed or floating-point dtype holds.

    Example:
        >>> DISTRIBUTIONS["rademacher"].bits, DISTRIBUTIONS["rademacher"].integers
        (1, True)
    """

    name: str
    bits: int
    numbers: Callable[[jax.Array, np.dtype], jax.Array]
    integers: bool = False


def check_distribution(name: str) -> None:
    """Raise unless `name` is one of `DISTRIBUTIONS`.

    Args:
        name: the distribution's name.

    Raises:
        ValueError: `name` is unknown.

    Example:
        >>> check_distribution("normal")
    """
    if not isinstance(name, str) or name not in DISTRIBUTIONS:
        names = ", ".join(repr(known) for known in DISTRIBUTIONS)
        raise ValueError(f"got distribution={name!r}; one of {names} is required")


def words_for(size: int, distribution: str) -> int:
    """How many random words `size` numbers take.

    Args:
        size: number of elements.
        distribution: `"rademacher"` (32 a word) or `"normal"` (2 a word).

    Returns:
        The number of uint32 words.

    Example:
        >>> words_for(33, "rademacher"), words_for(33, "normal")
        (2, 17)
    """
    check_distribution(distribution)
    return -(-size * DISTRIBUTIONS[distribution].bits // 32)


def unpack(
    words: jax.Array, shape: Sequence[int], distribution: str, dtype: DTypeLike, *, members_last: bool = False
) -> jax.Array:
    """Turn random words into i.i.d. symmetric noise of zero mean and unit variance.

    Rademacher: element `e` in row-major order is `1 − 2·b`, `b` being bit `e mod 32` of word `⌊e/32⌋`. Normal:
    `standard_normal` of the 16 bits from `16·(e mod 2)` of word `⌊e/2⌋`, rounded to `dtype`.

    Args:
        words: uint32 `[*members, words_for(size)]`, or `[words_for(size), *members]` with `members_last`.
        shape: one member's shape; `()` and zero-size shapes are allowed.
        distribution: `"rademacher"` (±1) or `"normal"`.
        dtype: the result's dtype: floating point; for rademacher also a signed integer.
        members_last: the members' axes follow those of `shape`. Default: they precede them.

    Returns:
        An array `[*members, *shape]`, or `[*shape, *members]`, of `dtype`.

    Raises:
        TypeError: `dtype` cannot hold the noise.
        ValueError: `distribution` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> unpack(jnp.array([0b00100111], "uint32"), (2, 4), "rademacher", "int8").tolist()
        [[-1, -1, -1, 1], [1, -1, 1, 1]]
    """
    check_distribution(distribution)
    dtype = jnp.dtype(dtype)
    _check_dtype(dtype, distribution)
    shape = tuple(int(length) for length in shape)
    members = words.shape[1:] if members_last else words.shape[:-1]
    full = (*shape, *members) if members_last else (*members, *shape)
    if math.prod(shape) == 0:
        return jnp.zeros(full, dtype)
    fields = _fields(words, math.prod(shape), DISTRIBUTIONS[distribution].bits, members_last).reshape(full)
    return as_numbers(fields, distribution, dtype)


def unpack_flat(words: jax.Array, size: int, distribution: str, dtype: DTypeLike) -> jax.Array:
    """`unpack(words, (size,), distribution, dtype)` of one member's words, several times faster for many of them.

    On CPUs the numbers are made field by field, with neighbouring words side by side, and put in order last.

    Args:
        words: uint32 `[words_for(size, distribution)]`.
        size: how many numbers, at least 1.
        distribution: `"rademacher"` or `"normal"`.
        dtype: the result's dtype: floating point.

    Returns:
        An array `[size]` of `dtype`.

    Example:
        >>> import jax.numpy as jnp
        >>> unpack_flat(jnp.array([0b00100111], "uint32"), 4, "rademacher", "float32").tolist()
        [-1.0, -1.0, -1.0, 1.0]
    """
    width = DISTRIBUTIONS[distribution].bits
    shifts, mask = np.arange(0, 32, width, dtype=np.uint32), jnp.uint32(2**width - 1)
    if len(shifts) == 2:  # put together, not broadcast: XLA would fuse that into the transposition, number by number
        fields = jnp.stack([(words >> shift) & mask for shift in shifts])
    else:
        fields = (words >> shifts[:, None]) & mask
    return as_numbers(fields, distribution, dtype).T.reshape(-1)[:size]


def as_numbers(fields: jax.Array, distribution: str, dtype: DTypeLike) -> jax.Array:
    """Noise of `dtype` from uint32 groups of the distribution's number of random bits, of any shape."""
    return DISTRIBUTIONS[distribution].numbers(fields, jnp.dtype(dtype))


def _check_dtype(dtype: np.dtype, distribution: str) -> None:
    if jnp.issubdtype(dtype, jnp.floating):
        return
    integers = DISTRIBUTIONS[distribution].integers
    if integers and jnp.issubdtype(dtype, jnp.signedinteger):
        return
    allowed = "floating-point or signed integer" if integers else "floating-point"
    raise TypeError(f"got dtype {dtype} for {distribution} noise; a {allowed} dtype is required; use float32")


def _rademacher(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    return jnp.where(bits != 0, jnp.array(-1, dtype), jnp.array(1, dtype))


def _normal(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    noise = standard_normal(bits)
    info = jnp.finfo(dtype)
    if info.bits == 16:
        # Inside a fusion XLA may skip the trip float32 → bfloat16 → float32; it never skips this rounding.
        noise = lax.reduce_precision(noise, info.nexp, info.nmant)
    return noise.astype(dtype)


DISTRIBUTIONS = {
    known.name: known
    for known in (Distribution("rademacher", 1, _rademacher, integers=True), Distribution("normal", 16, _normal))
}


def _fields(words: jax.Array, size: int, width: int, members_last: bool) -> jax.Array:
    """The first `size` groups of `width` bits, low bits of each word first, along the words' axis; as uint32."""
    shifts = jnp.arange(0, 32, width, dtype="uint32")
    mask = jnp.uint32(2**width - 1)
    if members_last:
        fields = (words[:, None] >> shifts.reshape(-1, *[1] * (words.ndim - 1))) & mask
        return fields.reshape(-1, *words.shape[1:])[:size]
    fields = (words[..., None] >> shifts) & mask
    return fields.reshape(*words.shape[:-1], -1)[..., :size]
