"""A pytree as a flat dictionary of plain arrays with a table of what they are, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import unique_paths
from eggroll.training.errors import RunError

SMALL_FILE = "arrays.npz"  # of a checkpoint that is one file
_SHOWN = 10


def flatten(state: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The arrays of a pytree by their paths, and a table (JSON) of path, shape and dtype of all its leaves.

    Keys of `jax.random` become their integers. Arrays without elements stand in the table only.

    Raises:
        RunError: a leaf is not an array.

    Example:
        >>> arrays, table = flatten({"key": jax.random.key(1), "mean": jnp.zeros((2, 0))})
        >>> sorted(arrays), [(row["path"], row["dtype"]) for row in table]
        (['key'], [('key', 'key<fry>'), ('mean', 'float32')])
    """
    leaves = jax.tree.leaves(state)
    table = [_row(path, leaf) for path, leaf in zip(unique_paths(state), leaves, strict=True)]
    plain = {row["path"]: _plain(leaf) for row, leaf in zip(table, leaves, strict=True) if np.size(leaf)}
    return plain, table


def check_fits(table: Sequence[Mapping[str, Any]], like: PyTree, where: str) -> None:
    """Raises `RunError`, with the paths, if what `table` describes is not what `like` asks for."""
    saved = {row["path"]: _kind(row) for row in table}
    asked = {row["path"]: _kind(row) for row in map(_row, unique_paths(like), jax.tree.leaves(like))}
    wrong = [f"{path} is not in the checkpoint" for path in asked if path not in saved]
    wrong += [f"{path} is in the checkpoint only" for path in saved if path not in asked]
    wrong += [
        f"{path} is {saved[path]} in the checkpoint and {asked[path]} here"
        for path in asked
        if saved.get(path, asked[path]) != asked[path]
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise RunError(
            f"The checkpoint {where} is of another model or optimizer than this run's: "
            f"{'; '.join(wrong[:_SHOWN])}{more}. Restore it with the settings that it was saved with."
        )


@dataclass(frozen=True)
class Place:
    """What to read an array as.

    Attributes:
        dtype: of what was written; of a key its integers'.
        sharding: None where NumPy is to have it first.
    """

    dtype: np.dtype
    sharding: Any


def places(table: Sequence[Mapping[str, Any]], like: PyTree) -> dict[str, Place]:
    """For each array of `flatten`, what to read it as."""
    leaves = dict(zip(unique_paths(like), jax.tree.leaves(like), strict=True))
    wanted = [(row["path"], leaves[row["path"]]) for row in table if 0 not in row["shape"]]
    return {path: Place(np.dtype(np.uint32 if _is_key(x) else x.dtype), _read_with(x)) for path, x in wanted}


def unflatten(arrays: Mapping[str, Any], table: Sequence[Mapping[str, Any]], like: PyTree) -> Any:
    """The pytree of `flatten` in the structure of `like`, each leaf where the leaf of `like` lies."""
    rows = {row["path"]: row for row in table}
    leaves, structure = jax.tree.flatten(like)
    back = [_back(arrays.get(path), rows[path], leaf) for path, leaf in zip(unique_paths(like), leaves, strict=True)]
    return jax.tree.unflatten(structure, back)


def _row(path: str, leaf: Any) -> dict[str, Any]:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise RunError(
            f"{path} of the state is a {type(leaf).__name__}; a checkpoint keeps arrays. Make it one with jnp.asarray, "
            "or put it into the record."
        )
    row = {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return {**row, "impl": str(jax.random.key_impl(leaf))} if _is_key(leaf) and isinstance(leaf, jax.Array) else row


def _kind(row: Mapping[str, Any]) -> str:
    return f"{row['dtype']}[{','.join(map(str, row['shape']))}]"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array) and (jax.process_count() == 1 or not leaf.is_fully_addressable):
        return leaf
    return np.array(leaf)  # a copy; Orbax refuses arrays that each of several processes has for itself


def _default() -> Any:
    return jnp.zeros(()).sharding


def _sharding(like: PyTree) -> Any:
    """Where the leaf of `like` lies; None if JAX puts things there unasked, in which case they can still move."""
    sharding = getattr(like, "sharding", None)
    return None if sharding == _default() else sharding


def _read_with(like: PyTree) -> Any:
    sharding = _sharding(like)
    return sharding if jax.process_count() == 1 or sharding is None or not sharding.is_fully_addressable else None


def _back(array: Any, row: Mapping[str, Any], like: PyTree) -> Any:
    if array is None:
        array = np.zeros(row["shape"], like.dtype)
    if isinstance(like, np.generic):
        return np.asarray(array)[()]
    if isinstance(like, np.ndarray):
        return np.asarray(array)
    if isinstance(array, np.ndarray):
        sharding = _sharding(like)
        array = jnp.array(array) if sharding is None else jax.device_put(array, sharding)
    return jax.random.wrap_key_data(array, impl=row["impl"]) if _is_key(like) else array
