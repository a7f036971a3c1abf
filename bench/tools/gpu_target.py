"""An H200 that is not there: XLA's and Mosaic's whole compilers run on any machine that has JAX's plugin for CUDA.

`pip install --no-deps jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION`, VERSION that of JAX; no driver is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

KIND, MULTIPROCESSORS = "NVIDIA H200", 132
# NVIDIA's figures for an H200: what XLA asks a device for.
_TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.755
  memory_bandwidth: 4800000000000
  device_memory_size: 150000000000
  l2_cache_size: 52428800
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""


def has_compiler() -> bool:
    """Whether the plugin is installed."""
    return find_spec("jax_plugins") is not None and find_spec("jax_plugins.xla_cuda13") is not None


def on_gpu(kind: str = KIND) -> Any:
    """A context in which kernels are lowered for a GPU that is not there."""
    device = AbstractDevice(device_kind=kind, num_cores=MULTIPROCESSORS, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def compiled(function: Callable[..., Any], *operands: Any) -> Any:
    """`function` for an H200, of operands that have a shape and a dtype, as `jax.stages.Compiled`."""
    from jax.experimental import topologies

    device = topologies.get_topology_desc("", platform="cuda", topology="1x1x1", target_config=_TARGET).devices[0]

    def spec(operand: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(operand.shape, operand.dtype, sharding=SingleDeviceSharding(device))

    with on_gpu():
        lowered = jax.jit(function).trace(*jax.tree.map(spec, operands)).lower(lowering_platforms=("cuda",))
    return lowered.compile()
