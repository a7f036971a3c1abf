"""Factors that do not exist yet: the key of a stream of random words, what is made of it, and by which kernel."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from eggroll.ops.noise import DISTRIBUTIONS, check_distribution, threefry2x32, unpack, words_for
from eggroll.ops.registry import REFERENCE, Choice, check_taken, current_platform, kernels, trusted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seeded:
    """A factor `[size, rank]`, or one for each of many members, as the key that its numbers are drawn from.

    Number `e = i·rank + j` of a factor is a field of threefry's word `⌊e/n⌋`, `n` numbers a word (see `unpack`): any
    tile can be made anywhere, and is the same everywhere.

    Args:
        key: `[*members, 2]` uint32: a threefry key each, as `jax.random.key_data` gives it.
        size: rows of the factor.
        rank: columns.
        distribution: `"rademacher"` (±1) or `"normal"`.
        dtype: of the numbers.
        name: of the parameter that the factor belongs to, for reports; default: none.
        sizes: of the axes that its rows stand for, such as heads and their depth; default: one axis.

    Example:
        >>> import jax
        >>> left = Seeded(jax.random.key_data(jax.random.key(0)), 5, 2, "rademacher")
        >>> left.array().shape
        (5, 2)
    """

    key: Any
    size: int = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})
    distribution: str = field(metadata={"static": True})
    dtype: DTypeLike = field(default="float32", metadata={"static": True})
    name: str = field(default="", metadata={"static": True})
    sizes: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """`(*members, *sizes, rank)`: of the array that it stands for."""
        return (*jnp.shape(self.key)[:-1], *(self.sizes or (self.size,)), self.rank)

    def matrix(self) -> Seeded:
        """The same with its rows on one axis: what the operations take."""
        return replace(self, sizes=None)

    def astype(self, dtype: DTypeLike) -> Seeded | jax.Array:
        """The numbers of another dtype: still a key where drawing them in it is the same as casting them."""
        narrower = jnp.finfo(dtype).bits <= jnp.finfo(self.dtype).bits
        if DISTRIBUTIONS[self.distribution].integers or (narrower and jnp.dtype(self.dtype) == jnp.float32):
            return replace(self, dtype=str(jnp.dtype(dtype)))
        return as_array(self).astype(dtype)

    def check(self, name: str) -> None:
        """Raises ValueError or TypeError unless the parts fit together; `name` is for the message."""
        check_distribution(self.distribution)
        if jnp.result_type(self.key) != jnp.uint32 or jnp.shape(self.key)[-1:] != (2,):
            raise TypeError(
                f"got {name} with a key of {jnp.result_type(self.key)} {list(jnp.shape(self.key))}; uint32 [..., 2] is "
                "required: pass jax.random.key_data(key) of a threefry key"
            )
        if self.size < 1 or self.rank < 1:
            raise ValueError(f"got {name} of size {self.size} and rank {self.rank}; both must be at least 1")
        if self.sizes is not None and math.prod(self.sizes) != self.size:
            raise ValueError(
                f"got {name} of size {self.size} with axes of sizes {self.sizes}; their product is required"
            )

    def array(self) -> jax.Array:
        """The numbers, `[*members, *sizes, rank]`."""
        # No constant: JAX cannot batch one that a custom_vmap has inside a cond.
        count = lax.iota(jnp.uint32, words_for(self.size * self.rank, self.distribution))
        first, second = threefry2x32((self.key[..., :1], self.key[..., 1:]), (np.uint32(0), count))
        return unpack(first ^ second, self.shape[jnp.ndim(self.key) - 1 :], self.distribution, self.dtype)


Factor = jax.Array | Seeded


def as_array(factor: Factor) -> jax.Array:
    """The numbers, whether they exist already or not; stored, not made anew by every operation that reads them."""
    if not isinstance(factor, Seeded):
        return factor
    with jax.named_scope(Choice("draw", REFERENCE, factor.name).scope()):
        return lax.optimization_barrier(factor.array())


def need_seeds(left: Factor, right: Factor, largest_rank: int) -> tuple[Seeded, Seeded]:
    """Both factors, if a kernel can make them; else NotImplementedError."""
    if not (isinstance(left, Seeded) and isinstance(right, Seeded)):
        raise NotImplementedError("factors that are arrays: the kernel makes its noise from keys (Seeded)")
    if left.rank > largest_rank:
        raise NotImplementedError(f"rank {left.rank}: at most {largest_rank}")
    return left, right


def kernel_for(rows: int, columns: int, rank: int, distribution: str, dtype: DTypeLike) -> str | None:
    """The kernel that multiplies by a perturbed matrix with `Seeded` factors on the current platform.

    Args:
        rows: of the matrix: its inputs.
        columns: of the matrix: its outputs.
        rank: of the factors.
        distribution: of the factors.
        dtype: of matrix, inputs and factors.

    Returns:
        The name of the implementation of `lowrank_dot`, which was tried; None where only the reference can do it: with
        factors that are arrays it then does not draw them anew at every use.

    Example:
        >>> from eggroll.kernels import kernel_for
        >>> kernel_for(64, 32, 1, "rademacher", "float32") if jax.default_backend() == "cpu" else None
    """
    candidates = tuple(kernels("lowrank_dot").items())
    if not candidates:
        return None
    abstract = jax.sharding.get_abstract_mesh().abstract_device  # what is lowered for, where that is another chip
    chip = current_platform(), jax.local_devices()[0].device_kind, abstract
    return _kernel_for(rows, columns, rank, distribution, str(dtype), candidates, chip)


@functools.cache
def _kernel_for(
    rows: int, columns: int, rank: int, distribution: str, dtype: str, candidates: tuple[Any, ...], chip: object
) -> str | None:
    def specs(*shape: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    keys = specs(1, 2, dtype="uint32")
    left, right = (Seeded(keys, size, rank, distribution, dtype) for size in (rows, columns))
    for name, function in candidates:
        args = specs(2, 1, rows), specs(rows, columns), left, right
        try:
            check_taken(function, *args)
            if trusted("lowrank_dot", name, function, *args):
                return name
        except NotImplementedError:
            continue
    return None
