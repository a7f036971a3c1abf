"""What the tests of kernels share: seeded operands, and the truth in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh

from eggroll.kernels import Seeded


def seeded(number: int, units: int, size: int, rank: int, distribution: str = "rademacher", dtype="float32") -> Seeded:
    """Keys of `units` streams."""
    keys = jax.random.split(jax.random.key(number, impl="threefry2x32"), units)
    return Seeded(jax.random.key_data(keys), size, rank, distribution, dtype)


def dot_operands(shape, distribution, dtype, number: int = 0):
    """`x [M, R, K]`, `w [K, N]`, both factors, `scale [M]`: signs alternate."""
    rng = np.random.default_rng(number)
    x = jnp.asarray(rng.normal(size=(shape.members, shape.rows, shape.depth)), dtype)
    w = jnp.asarray(rng.normal(size=(shape.depth, shape.columns)), dtype)
    left = seeded(2 * number, shape.units, shape.depth, shape.rank, distribution, dtype)
    right = seeded(2 * number + 1, shape.units, shape.columns, shape.rank, distribution, dtype)
    scale = jnp.asarray(0.3 * (-1.0) ** np.arange(shape.members), jnp.float32)
    return x, w, left, right, scale


def dot_truth(x, w, left, right, scale):
    """`(y, magnitude)` in float64: a member at a time, with the dense weight."""
    x, w, scale = (np.asarray(a, np.float64) for a in (x, w, scale))
    a, b = (np.asarray(f.array(), np.float64) for f in (left, right))
    signs = len(x) // len(a)
    y, size = [], []
    for member, rows in enumerate(x):
        noise = scale[member] * a[member // signs] @ b[member // signs].T
        y.append(rows @ (w + noise))
        size.append(
            np.abs(rows)
            @ (np.abs(w) + np.abs(scale[member]) * np.abs(a[member // signs]) @ np.abs(b[member // signs]).T)
        )
    return np.stack(y), np.stack(size)


def on_tpu(kind: str):
    """A context in which kernels are lowered for a TPU that is not there."""
    device = AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def on_gpu(kind: str = "NVIDIA H200"):
    """A context in which kernels are lowered for a GPU that is not there."""
    device = AbstractDevice(device_kind=kind, num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
