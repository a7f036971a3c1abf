"""States for `flax.serialization`: `to_state_dict`, `from_state_dict`, `to_bytes` and `from_bytes`.

Flax finds how to serialize a class in a table of its own. A class enters itself there once Flax is imported, which
nothing here does. A state dict has the arrays of each field by their paths, whatever pytree they are in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import unique_paths
from eggroll.lazy import when_imported

Class = TypeVar("Class", bound=type)
FLAX = "flax.serialization"
SHOWN = 5


def serializable(kind: Class) -> Class:
    """Class decorator of a dataclass that is a pytree: `flax.serialization` knows its instances."""

    def register(flax: Any) -> None:
        flax.register_serialization_state(kind, to_state_dict, from_state_dict, override=True)

    when_imported(FLAX, register)
    return kind


def to_state_dict(state: Any) -> dict[str, Any]:
    """The fields of a dataclass, each as its arrays by path; a key of `jax.random` as its kind and its integers."""
    return {name: _flat(getattr(state, name)) for name in _dynamic(state)}


def from_state_dict(like: Any, found: Mapping[str, Any]) -> Any:
    """The inverse of `to_state_dict`: an instance like `like`, whose arrays lie where those of `like` do.

    Raises:
        ValueError: a field or an array is missing, unknown, or of another shape or dtype.
    """
    _check_names("a state", found, _dynamic(like))
    return replace(like, **{name: _restored(name, getattr(like, name), found[name]) for name in _dynamic(like)})


def _dynamic(state: Any) -> list[str]:
    return [each.name for each in fields(state) if not each.metadata.get("static")]


def _flat(tree: PyTree) -> Any:
    leaves = [_plain(leaf) for leaf in jax.tree.leaves(tree)]
    return leaves[0] if jax.tree_util.all_leaves([tree]) else dict(zip(unique_paths(tree), leaves, strict=True))


def _restored(name: str, like: PyTree, found: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    if jax.tree_util.all_leaves([like]):
        return _back(name, like, found)
    paths = unique_paths(like)
    _check_names(f"'{name}' of a state", found, paths)
    each = zip(paths, leaves, strict=True)
    return structure.unflatten([_back(f"{name}/{path}", leaf, found[path]) for path, leaf in each])


def _check_names(what: str, found: Any, wanted: list[str]) -> None:
    have = set(found) if isinstance(found, Mapping) else set()
    wrong = [f"no {name!r}" for name in wanted if name not in have]
    wrong += [f"{name!r}, which is unknown here" for name in sorted(have - set(wanted))]
    if wrong or not isinstance(found, Mapping):
        named = ", ".join(wrong[:SHOWN]) or type(found).__name__
        raise ValueError(
            f"got a state dict in which {what} has {named}; restore it into a state as the one that was serialized: "
            "es.init(params, key) with the same model and optimizer."
        )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return {"impl": str(leaf.dtype), "data": jax.random.key_data(leaf)} if _is_key(leaf) else leaf


def _back(name: str, like: Any, found: Any) -> Any:
    if _is_key(like):
        _check_names(f"the key '{name}'", found, ["impl", "data"])
        if found["impl"] != str(like.dtype):
            raise _other(name, found["impl"], like.dtype)
        impl = jax.random.key_impl(like)
        return jax.random.wrap_key_data(jnp.asarray(found["data"]), impl=impl)
    if not hasattr(found, "dtype"):
        raise _other(name, type(found).__name__, f"{like.dtype}{list(like.shape)}")
    if (found.dtype, found.shape) != (like.dtype, like.shape):
        raise _other(name, f"{found.dtype}{list(found.shape)}", f"{like.dtype}{list(like.shape)}")
    if isinstance(like, np.ndarray | np.generic):
        return found
    sharding = getattr(like, "sharding", None)
    return jax.device_put(found, sharding) if isinstance(sharding, NamedSharding) else jnp.asarray(found)


def _other(name: str, was: Any, now: Any) -> ValueError:
    return ValueError(
        f"got {was} for '{name}' in a state dict, and {now} in the state to restore into: make that with the model and "
        "optimizer of the one that was serialized."
    )
