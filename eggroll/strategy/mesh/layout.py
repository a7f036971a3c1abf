"""Which of the two layouts of the update a mesh gets.

By `"members"`, which draws no noise twice, unless what that holds does not fit a device. Which of the two takes less
time depends on the links between devices, which nobody tells: a user who has measured it names the layout.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from eggroll.engine.annotations import PyTree
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.mesh.sharding import AXIS, axes_of
from eggroll.strategy.plan.parameters import is_low
from eggroll.strategy.population import Population


def layout(
    settings: Population, params: PyTree, optimizer: optax.GradientTransformation, memory: float | None = None
) -> str:
    """`"weights"` where what an update by members holds does not fit a device, else `"members"`.

    Args:
        settings: the population and its mesh.
        params: pytree of arrays or shapes.
        optimizer: that of the run.
        memory: bytes that a device may use. Default None: as far as it tells.
    """
    if settings.mesh is None or settings.mesh.shape[AXIS] == 1:
        return "members"
    memory = _device_memory() if memory is None else memory
    return "weights" if _held(settings, params, optimizer) > memory else "members"


def _held(settings: Population, params: PyTree, optimizer: optax.GradientTransformation) -> float:
    """Bytes on each device by members: weights, sums, master copies, and what the optimizer keeps beside them."""
    leaves = [x for x in jax.tree.leaves(params) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]
    wide = [jax.ShapeDtypeStruct(x.shape, accumulator_dtype(x.dtype)) for x in leaves]
    try:
        state = jax.eval_shape(optimizer.init, wide)
    except Exception:  # one for parameters of another structure, or for none: `ES.init` says what is wrong
        state = ()
    kept = sum(_bytes(x) for x in jax.tree.leaves(state)) / max(sum(map(_bytes, wide)), 1)
    assert settings.mesh is not None
    specs = settings.sharding.specs(
        leaf_paths(params), [tuple(x.shape) for x in jax.tree.leaves(params)], settings.mesh
    )
    total = 0.0
    for x, spec in zip(jax.tree.leaves(params), specs, strict=True):
        shards = math.prod(settings.mesh.shape[axis] for entry in spec for axis in axes_of(entry))
        sums = 4 * math.prod(x.shape)
        total += (_bytes(x) + sums * (1 + is_low(x) + kept)) / shards
    return total


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _device_memory() -> float:
    """Bytes that a device may use; as many as one likes where it does not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or math.inf
