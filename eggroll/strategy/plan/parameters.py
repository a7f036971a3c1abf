"""Parameters: what they may be, which of them move, and their float32 master copies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.annotations import PyTree
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.engine.paths import path_name

PARTITION = (
    "Of an Equinox module: params, static = eqx.partition(model, eqx.is_inexact_array), and "
    "eqx.combine(params, static) inside the function."
)


def as_arrays(params: PyTree) -> PyTree:
    """Parameters as JAX arrays; Python numbers would otherwise be part of the function."""
    check_no_module(params)
    return jax.tree_util.tree_map_with_path(as_array, params)


def as_array(path: Any, leaf: Any) -> jax.Array:
    """One parameter as a JAX array; raises TypeError, with its path, where it is none."""
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError, OverflowError) as why:  # some strings are read as numbers
        raise TypeError(
            f"got a parameter '{path_name(path)}' of type {type(leaf).__name__}; arrays or numbers are required. Pass "
            "everything else to the function as a further argument. " + PARTITION
        ) from why
    # A number's weak type would be lost in the first update, and everything compiled twice.
    return array.astype(array.dtype) if getattr(jax.typeof(array), "weak_type", False) else array


def check_no_module(params: PyTree) -> None:
    """Raises `TypeError` for a Flax NNX module, whose batch statistics and RNG streams are no parameters."""
    for leaf in jax.tree.leaves(params, is_leaf=_is_nnx_module):
        if _is_nnx_module(leaf):
            raise TypeError(
                f"got the NNX module {type(leaf).__name__} as parameters; a pytree of arrays is required. Use "
                "eggroll.nnx.ES, eggroll.nnx.value_and_grad, eggroll.nnx.grad or eggroll.nnx.explain, which carry its "
                "batch statistics and RNG streams along; or split a model that has none: graphdef, params = "
                "nnx.split(model, nnx.Param)."
            )


def _is_nnx_module(x: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")  # nobody has a module who did not import it: no need to depend on Flax
    return isinstance(x, getattr(nnx, "Module", ()))


# Noise on complex parameters is on their parts, so that what makes it has real ones alone.


def parts_of(x: jax.Array) -> jax.Array:
    """`[*shape, 2]`, real and imaginary parts of complex numbers; real ones as they are."""
    return jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x


def joined(parts: jax.Array, like: Any) -> jax.Array:
    """The inverse of `parts_of` for a parameter of the dtype of `like`."""
    return jax.lax.complex(parts[..., 0], parts[..., 1]) if jnp.iscomplexobj(like) else parts


# Frozen parameters are kept from the optimizer: it makes no state for them, and its weight decay leaves them alone.


def without(tree: PyTree, frozen: Sequence[bool]) -> PyTree:
    """`tree` with None, which is no leaf, in place of the frozen leaves.

    Args:
        tree: a pytree.
        frozen: one flag per leaf, in order.

    Returns:
        The pytree of what moves.

    Example:
        >>> without({"a": 1.0, "b": 2.0}, [True, False])
        {'a': None, 'b': 2.0}
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([None if still else leaf for leaf, still in zip(leaves, frozen, strict=True)])


def put_back(moving: Any, tree: PyTree, frozen: Sequence[bool]) -> PyTree:
    """The inverse of `without`: `moving` with the frozen leaves of `tree` in their places.

    Example:
        >>> put_back({"a": None, "b": 3.0}, {"a": 1.0, "b": 2.0}, [True, False])
        {'a': 1.0, 'b': 3.0}
    """
    leaves, structure = jax.tree.flatten(tree)
    rest = iter(jax.tree.leaves(moving))
    return structure.unflatten([leaf if still else next(rest) for leaf, still in zip(leaves, frozen, strict=True)])


# Parameters of lower precision have float32 copies: a bfloat16 weight would lose an update of 1e-5.


def is_low(leaf: Any) -> bool:
    """Whether a parameter has a master copy."""
    return jnp.issubdtype(leaf.dtype, jnp.floating) and accumulator_dtype(leaf.dtype) != leaf.dtype


def master_copies(params: PyTree) -> tuple[jax.Array, ...]:
    """Float32 copies of the leaves of lower precision, in order."""
    return tuple(p.astype(jnp.float32) for p in jax.tree.leaves(params) if is_low(p))


def full(params: PyTree, master: tuple[jax.Array, ...]) -> PyTree:
    """`params` with the master copies in place of the leaves of lower precision."""
    copies = iter(master)
    return jax.tree.map(lambda p: next(copies) if is_low(p) else p, params)


def rounded(moved: Any, like: PyTree) -> tuple[Any, tuple[jax.Array, ...]]:
    """Updated full-precision parameters, back to the dtypes of `like`, and their new master copies."""
    params = jax.tree.map(lambda m, p: m.astype(p.dtype), moved, like)
    pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(like), strict=True)
    return params, tuple(m for m, p in pairs if is_low(p))
