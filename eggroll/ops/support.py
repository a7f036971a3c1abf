"""Whether a kernel can multiply by a matrix of given sizes: asked before its factors are left as keys."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.typing import DTypeLike

from eggroll.ops.registry import current_platform, kernels
from eggroll.ops.seeded import Seeded


def kernel_for(rows: int, columns: int, rank: int, distribution: str, dtype: DTypeLike) -> str | None:
    """The kernel that multiplies by a perturbed matrix with `Seeded` factors on the current platform.

    Args:
        rows: of the matrix: its inputs.
        columns: of the matrix: its outputs.
        rank: of the factors.
        distribution: of the factors.
        dtype: of matrix, inputs and factors.

    Returns:
        The name of the implementation of `lowrank_dot`; None where only the reference can do it: with factors that are
        arrays it then does not draw them anew at every use.

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
        try:
            jax.eval_shape(function, specs(2, 1, rows), specs(rows, columns), left, right)
        except NotImplementedError:
            continue
        return name
    return None
