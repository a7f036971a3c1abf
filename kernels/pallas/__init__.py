"""The device kernels of `eggroll.ops`, and its names: the operations, and how another kernel plugs in.

Pallas kernels for TPUs and Hopper GPUs. Importing them registers them. The files lie in `kernels/pallas`; the package's
name is `eggroll.kernels`. It depends on JAX, numpy and `eggroll.ops` alone.
"""

from __future__ import annotations

from eggroll.ops import (
    Choice,
    Implementation,
    Seeded,
    as_array,
    check_distribution,
    implementations,
    kernel_for,
    lowrank_dot,
    rank_update,
    register,
    threefry2x32,
    unpack,
    unpack_flat,
    words_for,
)

from . import gpu_lowrank_dot, gpu_rank_update, tpu_lowrank_dot, tpu_rank_update  # noqa: F401  they register themselves

__all__ = [
    "Choice",
    "Implementation",
    "Seeded",
    "as_array",
    "check_distribution",
    "implementations",
    "kernel_for",
    "lowrank_dot",
    "rank_update",
    "register",
    "threefry2x32",
    "unpack",
    "unpack_flat",
    "words_for",
]
