"""Pytrees of arrays as `.npz` files, by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.engine.paths import leaf_paths
from eggroll.training.files import whole_file


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """The leaves as NumPy arrays, under the paths by which `eggroll explain` names them.

    Example:
        >>> by_path({"layer": {"bias": np.zeros(2)}})
        {'layer/bias': array([0., 0.])}
    """
    return {path: np.asarray(leaf) for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)}


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an `.npz` file, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # pyright takes one of them for allow_pickle
