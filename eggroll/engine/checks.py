"""What rooms share: names of parameters, checks of what users give, and whether a value can be looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from eggroll.engine.annotations import PyTree


def leaf_paths(params: PyTree) -> list[str]:
    """The path of each leaf: keys, attributes and indices joined by `/`; the `.value` of Flax's boxes is left out.

    Example:
        >>> leaf_paths({"layers": [{"kernel": 1.0}], "scale": 2.0})
        ['layers/0/kernel', 'scale']
    """
    return [path_name(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]


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


def as_count(name: str, value: Any, least: int = 1, hint: str = "") -> int:
    """`value` as a Python integer of at least `least`; NumPy's integers count, booleans and floats do not.

    Args:
        name: the setting's name, for the message.
        value: what the user gave.
        least: the smallest allowed value.
        hint: what to do, added to the message.

    Returns:
        The integer.

    Raises:
        ValueError: no integer, or one below `least`.

    Example:
        >>> import numpy as np
        >>> as_count("population", np.int64(8))
        8
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"got {name}={value!r}; an integer of at least {least} is required.{hint}")
    return int(value)


def check_function(name: str, fun: Any, usage: str) -> None:
    """Raises `TypeError` unless `fun` can be called; `usage` shows where it belongs."""
    if not callable(fun):
        raise TypeError(f"got {type(fun).__name__} as {name}; a function of the parameters is required: {usage}.")


def is_traced(*trees: Any) -> bool:
    """True while a transformation traces these values, when nothing can be checked or raised by value."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(trees))
