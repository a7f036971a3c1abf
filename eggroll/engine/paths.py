"""Names of parameters: their paths in the pytree, and the hashes of these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax

from eggroll.engine.annotations import PyTree


def leaf_paths(params: PyTree) -> list[str]:
    """The path of each leaf: keys, attributes and indices joined by `/`; the `.value` of Flax's boxes is left out.

    Example:
        >>> leaf_paths({"layers": [{"kernel": 1.0}], "scale": 2.0})
        ['layers/0/kernel', 'scale']
    """
    return [path_name(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]


def unique_paths(tree: PyTree) -> list[str]:
    """The same, in the long form of `jax.tree_util.keystr` where two leaves had the same path otherwise.

    Example:
        >>> unique_paths({"a/b": 1, "a": {"b": 2}})
        ["['a']['b']", "['a/b']"]
    """
    short = leaf_paths(tree)
    if len(set(short)) == len(short):
        return short
    return [jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


def path_name(keys: Sequence[Any]) -> str:
    """The path of the leaf at `keys`, as in `leaf_paths`."""
    boxed = len(keys) > 1 and getattr(keys[-1], "name", None) == "value"
    return "/".join(_name(k) for k in (keys[:-1] if boxed else keys))


def _name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def path_hash(path: str) -> int:
    """Return a 32-bit hash of a parameter's path, the same in every process and on every platform.

    Args:
        path: the parameter's path, such as `"layers/0/kernel"`.

    Returns:
        BLAKE2b of the UTF-8 path with a digest of 4 bytes, read as a little-endian integer.

    Example:
        >>> path_hash("dense/kernel")
        1344830336
    """
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=4).digest(), "little")
