"""States to save, each a function of its generation, and how to tell that two are the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "complex64", "bool", "int4", "int8", "int32", "uint32")


def small(generation: int) -> dict[str, Any]:
    """A few arrays that differ from generation to generation in every element."""
    rng = np.random.default_rng(generation)
    return {
        "weights": jax.device_put(rng.normal(size=(64, 33)).astype(np.float32)),
        "key": jax.random.key(generation),
        "generation": jax.device_put(np.int32(generation)),
    }


def everything(generation: int) -> dict[str, Any]:
    """Every dtype, every structure, and the bits that are easily lost."""
    rng = np.random.default_rng(generation)
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16), "b": jnp.zeros(2)}
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x7F800000, 1], np.uint32).view(np.float32)  # NaNs with a load
    return {
        "dtypes": {name: jnp.asarray(rng.integers(0, 2, (2, 3))).astype(name) for name in DTYPES},
        "odd": jnp.asarray(odd),
        "adam": optax.chain(optax.clip(1.0), optax.adam(1e-2)).init(params),
        "tuple": (jnp.int32(generation), [None, jnp.ones(())], {}),
        "keys": jax.random.split(jax.random.key(generation), 3),
        "rbg": jax.random.key(generation, impl="rbg"),
        "empty": jnp.zeros((0, 4), jnp.int8),
        "numpy": rng.normal(size=5),
        "scalar": np.float32(generation),
        "flax": nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(generation))),
        "a/b": jnp.ones(1),
        "a": {"b": jnp.zeros(1)},  # the same path as the one above, written short
    }


def assert_same(got: Any, want: Any) -> None:
    """Same structure, types, dtypes, shapes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape), path
        assert bits(one) == bits(other), path


def bits(leaf: Any) -> bytes:
    """The bytes of an array, or of the integers of a key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()
