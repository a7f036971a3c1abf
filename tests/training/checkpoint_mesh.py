"""Saves on one mesh and restores on others, with eight simulated devices.

python -m tests.training.checkpoint_mesh FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from eggroll.training.checkpoints.manager import Checkpoints
from tests.training.checkpoint_states import bits


def placed(shape: tuple[int, ...], axes: tuple[str, ...], rows: PartitionSpec) -> dict[str, jax.Array]:
    """A state on a mesh of `shape`: a matrix and keys in parts, a scalar on every device, one on device 0."""
    mesh = jax.make_mesh(shape, axes)

    def put(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, spec))

    weights = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    return {
        "weights": put(jnp.asarray(weights).astype(jnp.bfloat16), rows),
        "keys": put(jax.random.split(jax.random.key(0), 8), PartitionSpec(axes[0])),
        "generation": put(jnp.int32(5), PartitionSpec()),
        "alone": jnp.arange(3),
    }


def unplaced(x: jax.Array) -> jax.Array:
    """The same where JAX puts it by itself."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(x))))
    return jnp.asarray(np.asarray(x))


def abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def main(folder: Path) -> None:
    assert jax.device_count() == 8
    states = {
        "4 x 2": placed((4, 2), ("population", "model"), PartitionSpec(None, "model")),
        "8": placed((8,), ("population",), PartitionSpec("population")),
        "2 x 4": placed((2, 4), ("model", "population"), PartitionSpec("population", "model")),
        "2 of 8": placed((2,), ("population",), PartitionSpec()),
        "none": jax.tree.map(unplaced, placed((1,), ("x",), PartitionSpec())),
    }
    restores = 0
    for saved_on, saved in states.items():
        with Checkpoints(folder / saved_on) as checkpoints:
            checkpoints.save(1, saved, {})
            for wanted in states.values():
                kinds = (wanted, jax.tree.map(abstract, wanted))
                for like in kinds:
                    got = checkpoints.restore(like).state  # pyright: ignore[reportOptionalMemberAccess]
                    for name, leaf in got.items():
                        assert leaf.sharding.is_equivalent_to(wanted[name].sharding, leaf.ndim), (saved_on, name)
                        assert leaf.dtype == saved[name].dtype and bits(leaf) == bits(saved[name])
                    restores += 1
    print(restores)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
