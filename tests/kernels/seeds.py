"""What tests of kernels share: operands and truths of `eggroll.ops.truth`, and devices that are not there."""

from __future__ import annotations

import jax
from jax.sharding import AbstractDevice, AbstractMesh

from bench.tools.gpu_target import on_gpu
from eggroll.ops.truth import dot_operands, dot_truth, seeded

__all__ = ["dot_operands", "dot_truth", "on_gpu", "on_tpu", "seeded"]


def on_tpu(kind: str):
    """A context in which kernels are lowered for a TPU that is not there."""
    device = AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
