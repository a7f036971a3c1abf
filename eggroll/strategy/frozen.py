"""Frozen parameters are kept from the optimizer: it makes no state for them, and its weight decay leaves them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax


def without(tree: Any, frozen: Sequence[bool]) -> Any:
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


def put_back(moving: Any, tree: Any, frozen: Sequence[bool]) -> Any:
    """The inverse of `without`: `moving` with the frozen leaves of `tree` in their places.

    Example:
        >>> put_back({"a": None, "b": 3.0}, {"a": 1.0, "b": 2.0}, [True, False])
        {'a': 1.0, 'b': 3.0}
    """
    leaves, structure = jax.tree.flatten(tree)
    rest = iter(jax.tree.leaves(moving))
    return structure.unflatten([leaf if still else next(rest) for leaf, still in zip(leaves, frozen, strict=True)])
