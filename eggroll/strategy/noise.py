"""Noise as a pure function of (key, parameter path, member pair, element).

Element `e` of a draw is bit `e mod 32` of threefry's output for counter `⌊e/32⌋` (rademacher) or its half `e mod 2`
for counter `⌊e/2⌋` (normal), as `jax.random.bits` gives them. So the same numbers come out jitted or not,
under `vmap`, in chunks of any size, on any number of devices, and a kernel can make them where it needs them.

References:
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11 (threefry).
    B. Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652 (low-rank perturbations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from eggroll.strategy.normal import standard_normal

DISTRIBUTIONS = ("rademacher", "normal")

_LEFT, _RIGHT, _DENSE = 0, 1, 2  # streams of one parameter; part of what a seed means, so never renumbered


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


def draw(key: jax.Array, shape: Sequence[int], distribution: str, dtype: DTypeLike) -> jax.Array:
    """Draw i.i.d. symmetric noise of zero mean and unit variance.

    Rademacher: element `e` in row-major order is `1 − 2·b`, `b` being bit `e mod 32` of word `⌊e/32⌋` of
    `jax.random.bits(key, (⌈n/32⌉,), "uint32")`. Normal: `standard_normal` of the 16 bits from `16·(e mod 2)` of
    word `⌊e/2⌋` of `jax.random.bits(key, (⌈n/2⌉,), "uint32")`, rounded to `dtype`. The random bits depend neither on
    `dtype` nor on `jax_threefry_partitionable`.

    Args:
        key: a typed threefry key of shape `()`.
        shape: the shape of the draw; `()` and zero-size shapes are allowed.
        distribution: `"rademacher"` (±1) or `"normal"`.
        dtype: the result's dtype: floating point; for rademacher also a signed integer.

    Returns:
        An array of `shape` and `dtype`.

    Raises:
        TypeError: `dtype` cannot hold the noise.
        ValueError: `distribution` is unknown.

    Example:
        >>> import jax
        >>> draw(jax.random.key(0), (2, 4), "rademacher", "int8").tolist()
        [[-1, -1, -1, 1], [1, -1, 1, -1]]
    """
    check_distribution(distribution)
    dtype = jnp.dtype(dtype)
    _check_dtype(dtype, distribution)
    shape = tuple(int(length) for length in shape)
    if math.prod(shape) == 0:
        return jnp.zeros(shape, dtype)
    # Without the flag jax.random pairs up a draw's counters: an element would depend on the draw's size.
    with jax.threefry_partitionable(True):
        return _rademacher(key, shape, dtype) if distribution == "rademacher" else _normal(key, shape, dtype)


def _check_dtype(dtype: np.dtype, distribution: str) -> None:
    if jnp.issubdtype(dtype, jnp.floating):
        return
    if distribution == "rademacher" and jnp.issubdtype(dtype, jnp.signedinteger):
        return
    allowed = "floating-point or signed integer" if distribution == "rademacher" else "floating-point"
    raise TypeError(f"got dtype {dtype} for {distribution} noise; a {allowed} dtype is required; use float32")


def _rademacher(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    return jnp.where(_fields(key, shape, 1) != 0, jnp.array(-1, dtype), jnp.array(1, dtype))


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    noise = standard_normal(_fields(key, shape, 16))
    info = jnp.finfo(dtype)
    if info.bits == 16:
        # Inside a fusion XLA may skip the trip float32 → bfloat16 → float32; it never skips this rounding.
        noise = lax.reduce_precision(noise, info.nexp, info.nmant)
    return noise.astype(dtype)


def _fields(key: jax.Array, shape: tuple[int, ...], width: int) -> jax.Array:
    """As many groups of `width` random bits as `shape` has elements, the low bits of each word first, as uint32."""
    size, each = math.prod(shape), 32 // width
    words = jax.random.bits(key, (-(-size // each),), "uint32")
    fields = (words[:, None] >> jnp.arange(0, 32, width, dtype="uint32")) & jnp.uint32(2**width - 1)
    return fields.reshape(-1)[:size].reshape(shape)


def low_rank_factors(
    leaf_key: jax.Array,
    pair: int | jax.Array,
    left_shape: Sequence[int],
    right_shape: Sequence[int],
    rank: int,
    distribution: str,
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Draw the factors `A`, `B` of one member pair's perturbation `A·Bᵀ`, of unit variance and unscaled.

    The caller multiplies by `±σ/√rank`. Left and right are independent streams. The columns of a draw depend
    on its rank: column `k` of rank 4 is not column `k` of rank 1.

    Args:
        leaf_key: the parameter's key, from `keys.leaf_key`.
        pair: the member pair's number, from 0; may be traced, so `jax.vmap` over it draws for many pairs.
        left_shape: the lengths of the axes that the left factor owns.
        right_shape: the lengths of the axes that the right factor owns.
        rank: the number of columns, at least 1.
        distribution: `"rademacher"` or `"normal"`.
        dtype: the factors' dtype.

    Returns:
        `(left, right)` of shapes `[*left_shape, rank]` and `[*right_shape, rank]`.

    Raises:
        TypeError: `dtype` cannot hold the noise.
        ValueError: `distribution` is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key = jax.random.key(0)
        >>> one = lambda pair: low_rank_factors(key, pair, (3,), (5,), 2, "normal", "float32")
        >>> left, right = jax.vmap(one)(jnp.arange(7))
        >>> left.shape, right.shape
        ((7, 3, 2), (7, 5, 2))
    """
    left = draw(_stream(leaf_key, _LEFT, pair), (*left_shape, rank), distribution, dtype)
    right = draw(_stream(leaf_key, _RIGHT, pair), (*right_shape, rank), distribution, dtype)
    return left, right


def dense_noise(
    leaf_key: jax.Array, pair: int | jax.Array, shape: Sequence[int], distribution: str, dtype: DTypeLike
) -> jax.Array:
    """Draw one member pair's full-rank perturbation of a parameter, of unit variance and unscaled.

    Args:
        leaf_key: the parameter's key, from `keys.leaf_key`.
        pair: the member pair's number, from 0; may be traced.
        shape: the parameter's shape.
        distribution: `"rademacher"` or `"normal"`.
        dtype: the noise's dtype.

    Returns:
        An array of `shape`, from a stream independent of `low_rank_factors`.

    Raises:
        TypeError: `dtype` cannot hold the noise.
        ValueError: `distribution` is unknown.

    Example:
        >>> import jax
        >>> dense_noise(jax.random.key(0), 0, (3,), "rademacher", "float32").shape
        (3,)
    """
    return draw(_stream(leaf_key, _DENSE, pair), shape, distribution, dtype)


def _stream(leaf_key: jax.Array, side: int, pair: int | jax.Array) -> jax.Array:
    # The side first: under a vmap over pairs it is shared, and each member pays for one fold_in per stream.
    return jax.random.fold_in(jax.random.fold_in(leaf_key, side), pair)
