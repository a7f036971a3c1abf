"""The device kernels of `eggroll.ops`, and its names: the operations, and how another kernel plugs in.

Pallas kernels for TPUs and Hopper GPUs, which `eggroll.ops.registry` loads where it meets such a chip. The files lie in
`kernels/pallas`; the package's name is `eggroll.kernels`. It depends on JAX, numpy and `eggroll.ops` alone.
"""

from __future__ import annotations

from eggroll.ops import *  # noqa: F403
from eggroll.ops import __all__ as __all__


def __dir__() -> list[str]:
    return list(__all__)
