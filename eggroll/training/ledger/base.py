"""The base of a ledger: the parameters that a run started from, their digests, and their `.npz` file."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.parameters import as_arrays
from eggroll.training.errors import RunError
from eggroll.training.folder.layout import INITIAL


def digests(base: Any) -> dict[str, str]:
    """The digest of every parameter: the first 16 hexadecimal digits of SHA-256 of its name, dtype, shape and bytes.

    Args:
        base: pytree of arrays.

    Returns:
        path → digest, in the order of the leaves.

    Raises:
        RunError: two parameters with the same path, which a ledger cannot tell apart.
    """
    found: dict[str, str] = {}
    for path, leaf in zip(leaf_paths(base), jax.tree.leaves(base), strict=True):
        if path in found:
            raise RunError(f"got two parameters with the path '{path}': a ledger cannot tell them apart. Rename one.")
        array = to_numpy(leaf)
        digest = hashlib.sha256(f"{path}\0{array.dtype.name}\0{','.join(map(str, array.shape))}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        found[path] = digest.hexdigest()[:16]
    return found


def joint_digest(each: Mapping[str, str], paths: Sequence[str]) -> str:
    """One digest of all parameters, in the order of `paths`: SHA-256 of their digests, in hexadecimal."""
    return hashlib.sha256("".join(each[path] for path in paths).encode()).hexdigest()


def to_numpy(leaf: Any) -> np.ndarray:
    """A parameter as a numpy array; a random key, which only a frozen one can be, as its words."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def in_order(base: Any, plan: Plan) -> Any:
    """`base` as it is if its leaves are those of the plan, in order; a flat `{path: array}` put into that order.

    Args:
        base: pytree of arrays, or a dictionary of arrays by path.
        plan: how each parameter is perturbed.

    Returns:
        A pytree, for a flat dictionary an ordered one, whose leaves JAX keeps in that order.

    Raises:
        RunError: other names, shapes or dtypes than the plan's, which are named.
    """
    paths = [leaf.path for leaf in plan.leaves]
    if leaf_paths(base) != paths:
        flat = base if isinstance(base, Mapping) else {}
        if set(flat) != set(paths):
            raise RunError(_other_names(leaf_paths(base), paths))
        base = OrderedDict((path, flat[path]) for path in paths)
    leaves, tree = jax.tree.flatten(base)
    typed = [_with_dtype(array, leaf.dtype) for leaf, array in zip(plan.leaves, leaves, strict=True)]
    arrays = as_arrays(typed)
    for leaf, array in zip(plan.leaves, arrays, strict=True):
        if (array.shape, str(array.dtype)) != (leaf.shape, leaf.dtype):
            raise RunError(
                f"got {array.dtype} of shape {array.shape} for '{leaf.path}'; the ledger was written for "
                f"{leaf.dtype} of shape {leaf.shape}. Give the parameters that the run started from."
            )
    return tree.unflatten(arrays)


def _with_dtype(array: Any, planned: str) -> Any:
    """The array; numpy's files know bfloat16 and the like only as so many bytes, and are told the dtype here."""
    if isinstance(array, np.ndarray) and array.dtype.kind == "V" and array.dtype.names is None:
        dtype = jnp.dtype(planned)
        return array.view(dtype) if dtype.itemsize == array.dtype.itemsize else array.view(np.uint8)
    return array


def check_base(base: Any, plan: Plan, recorded: Mapping[str, Any]) -> None:
    """Raises RunError, naming parameters, unless `base` is what the ledger was written for, bit for bit.

    Args:
        base: from `in_order`.
        plan: the ledger's.
        recorded: the settings' `base`.
    """
    paths, each = [leaf.path for leaf in plan.leaves], digests(base)
    if joint_digest(each, paths) == recorded["digest"]:
        return
    wrong = [path for path, digest in zip(paths, recorded["parameters"], strict=True) if each[path] != digest]
    name = f" (it names its base '{recorded['name']}')" if recorded["name"] else ""
    raise RunError(
        f"got a base of which {len(wrong)} of {len(paths)} parameters are not those that the ledger was written for"
        f"{name}: {', '.join(wrong[:5])}{', …' if len(wrong) > 5 else ''}. Give the parameters that the run started "
        "from, bit for bit."
    )


def _other_names(got: Sequence[str], want: Sequence[str]) -> str:
    missing, more = [p for p in want if p not in set(got)], [p for p in got if p not in set(want)]
    parts = [f"without {', '.join(missing[:5])}"] if missing else []
    parts += [f"with {', '.join(more[:5])}, which the ledger does not know"] if more else []
    order = "with its parameters in another order" if not parts else ""
    return f"got a base {' and '.join(parts) or order}: give the parameters that the run started from."


def load_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by path; nothing in it is executed.

    Args:
        path: the file, or a run folder that has `initial.npz`.

    Raises:
        RunError: no such file, or none that numpy can read without pickle.
    """
    path = Path(path)
    path = path / INITIAL if os.path.isdir(path) else path
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: file[name] for name in file.files}
    except Exception as why:  # zip files fail in many ways
        raise RunError(
            f"cannot read parameters from '{path}' ({type(why).__name__}: {why}); an .npz file of arrays by path, or a "
            f"run folder with {INITIAL}, is required."
        ) from why
