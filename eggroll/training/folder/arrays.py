"""Pytrees of arrays as `.npz` files, by path."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import leaf_paths
from eggroll.training.folder.files import whole_file


def by_path(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves as NumPy arrays, under the paths by which `eggroll explain` names them.

    Example:
        >>> by_path({"layer": {"bias": np.zeros(2)}})
        {'layer/bias': array([0., 0.])}
    """
    return {path: np.asarray(leaf) for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)}


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an `.npz` file, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    with whole_file(path) as file:
        write_npz(file, arrays)


def write_npz(file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """Writes what `numpy.savez` would, whose arguments forbid some names: `"file"` is one.

    Example:
        >>> import io
        >>> write_npz(file := io.BytesIO(), {"file": np.arange(3)})
        >>> _ = file.seek(0)
        >>> np.load(file)["file"]
        array([0, 1, 2])
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
