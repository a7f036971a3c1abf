"""The two operations that all members of a population share, each with several implementations.

`lowrank_dot` multiplies by a perturbed weight, `rank_update` sums weighted perturbations. Both pick an
implementation for the machine at hand: a Pallas kernel where one is registered and can do it, else plain `jax.numpy`.
Factors are arrays, or `Seeded`: keys, from which a kernel makes the numbers in its registers.

This package depends on JAX and numpy alone. Device kernels lie in `eggroll.kernels`, import this package and register
themselves; `eggroll.ops.registry` loads those of a platform when an implementation for it is first looked for.
"""

from __future__ import annotations

from eggroll.ops.noise import check_distribution, threefry2x32, unpack, unpack_flat, words_for
from eggroll.ops.operations import lowrank_dot, rank_update
from eggroll.ops.registry import Choice, Implementation, implementations, register
from eggroll.ops.seeded import Seeded, as_array, kernel_for

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


def __dir__() -> list[str]:
    return list(__all__)  # and not what the file itself needs
