"""The two operations that all members of a population share, each with several implementations.

`lowrank_dot` multiplies by a perturbed weight, `rank_update` sums weighted perturbations. Both pick an
implementation for the machine at hand: a Pallas kernel where one is registered, else plain `jax.numpy`.

This package depends on JAX and numpy alone. Its files lie in `kernels/pallas`; its name is `eggroll.kernels`.
"""

from __future__ import annotations

from .operations import lowrank_dot, rank_update
from .registry import Implementation, implementations, register
from .threefry import threefry2x32

__all__ = ["Implementation", "implementations", "lowrank_dot", "rank_update", "register", "threefry2x32"]
