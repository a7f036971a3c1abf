"""The base of a ledger, the parameters that a run started from, as a replay is given it."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.checks import is_huge
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.leaves import Plan, full_rank
from eggroll.strategy.plan.parameters import as_arrays
from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import read_arrays
from eggroll.training.folder.layout import INITIAL
from eggroll.training.ledger.format import digests, joint_digest


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


def check_plan(plan: Plan) -> None:
    """Raises ValueError for a plan that no strategy makes, whose noise may be of any size."""
    for leaf in plan.leaves:
        axes = {*leaf.left_axes, *leaf.right_axes}
        if leaf.kind == "low_rank":
            most = full_rank(leaf.shape, leaf.left_axes, leaf.right_axes) if axes == set(range(len(leaf.shape))) else 0
            if type(leaf.rank) is not int or not 1 <= leaf.rank <= most:
                raise ValueError(f"rank {leaf.rank!r} for '{leaf.path}' of shape {list(leaf.shape)}")
        scale = leaf.sigma_scale
        if type(scale) not in (int, float) or is_huge(scale) or not 0 < scale < math.inf:
            raise ValueError(f"sigma_scale {scale!r} for '{leaf.path}'")


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


def load_arrays(path: Path | str, plan: Plan | None = None) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by path; nothing in it is executed.

    Args:
        path: the file, or a run folder that has `initial.npz`.
        plan: of the ledger, to read no others than the parameters that it was written for. Default None: all.

    Raises:
        RunError: no such file, or none of the parameters' arrays.
    """
    path = Path(path)
    path = path / INITIAL if os.path.isdir(path) else path
    shapes = None if plan is None else {leaf.path: leaf.shape for leaf in plan.leaves}
    mend = f"An .npz file of the run's first parameters by path, or a run folder with {INITIAL}, is needed."
    return read_arrays(path, shapes, mend)
