"""Rewards by Python functions: every process scores the members whose outputs it holds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from eggroll.engine.annotations import Function, PyTree
from eggroll.engine.checks import as_number
from eggroll.training.errors import RunError
from eggroll.training.processes.talk import count, gather, gather_json

MESSAGE = 1000  # characters of an error's text that cross between processes


class Scores(NamedTuple):
    """What scorers said, the same in every process.

    Attributes:
        fitness: `[N]` float64; NaN where the scorer raised.
        failed: for how many members it raised.
        error: the first of these errors, with the member's number; empty if there is none.
    """

    fitness: np.ndarray
    failed: int
    error: str


def local_members(outputs: PyTree) -> tuple[np.ndarray, PyTree]:
    """The members for which this process answers, and their outputs.

    A member that several processes hold is one process's alone, so that all together have every member once.

    Args:
        outputs: from `members.apply`: a pytree of arrays with a leading axis `population`.

    Returns:
        (numbers `[n]` of members in order, a pytree of numpy arrays `[n, ...]`).

    Raises:
        ValueError: no arrays, arrays of different leading axes, or split along another axis than the first.

    Example:
        >>> import jax.numpy as jnp
        >>> from eggroll.training import processes
        >>> numbers, host = processes.local_members({"answer": jnp.arange(6.0).reshape(3, 2)})
        >>> numbers.tolist(), host["answer"].shape
        ([0, 1, 2], (3, 2))
    """
    mine = _shares(outputs)[jax.process_index()]
    return mine, jax.tree.map(lambda leaf: _rows(leaf, mine), outputs)


def score(outputs: PyTree, scorer: Function, *, numbered: bool = False) -> Scores:
    """Scores every member in the process that holds its output, and gathers the numbers.

    `8·N` bytes reach each process, and 8 from each other one: for how many members its scorer raised.

    Args:
        outputs: from `members.apply`: a pytree of arrays with a leading axis `population`.
        scorer: `scorer(output)` → a number, maximised; `output` is one member's, as numpy arrays. A member for which it
            raises has the fitness NaN, which `es.tell` drops with its pair.
        numbered: call `scorer(output, member)` instead. Default False.

    Returns:
        The scores, the same in every process.

    Raises:
        RunError: the scorer raised for all members, or another process is gone.
        ValueError: as `local_members`.

    Example:
        >>> import jax.numpy as jnp
        >>> from eggroll.training import processes
        >>> processes.score(jnp.array([3.0, 1.0, 2.0]), lambda output: 2 * output).fitness.tolist()
        [6.0, 2.0, 4.0]
    """
    shares = _shares(outputs)
    mine, host = local_members(outputs)
    values = np.full(max(map(len, shares)) + 1, np.nan)
    errors: dict[int, Exception] = {}
    for k, member in enumerate(mine.tolist()):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], host)
        try:
            found = scorer(one, member) if numbered else scorer(one)
            values[k] = as_number("the scorer", found, " A member without a score has float('nan').")
        except Exception as why:  # whatever a reward model or a parser may raise
            errors[member] = why
    values[-1] = len(errors)
    rows = gather(values)
    fitness = np.full(sum(map(len, shares)), np.nan)
    for row, members in zip(rows, shares, strict=True):
        fitness[members] = row[: len(members)]
    failed, first, text = int(rows[:, -1].sum()), len(fitness), ""
    if failed:
        own = [(member, f"member {member}: {type(why).__name__}: {why}"[:MESSAGE]) for member, why in errors.items()]
        first, text = min(gather_json(min(own, default=(first, ""))))
    if failed == len(fitness):
        message = f"the scorer raised for all {failed} members; the first: {text}"
        raise RunError(message, everywhere=True) from errors.get(first)
    return Scores(fitness, failed, text)


def _shares(outputs: PyTree) -> list[np.ndarray]:
    """The members of each process. Every process finds the same answer by itself: shardings are known to all."""
    leaves = jax.tree.leaves(outputs)
    sizes = {np.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"got outputs with leading axes {sorted(sizes)}; a pytree of arrays that all have one row per member is "
            "required, as members.apply(...) returns."
        )
    leaf, ((members,),) = leaves[0], sizes
    holders: dict[tuple[int, int], set[int]] = {}  # of each run of members, the processes that hold their outputs
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:  # each process has computed them all
        holders[0, members] = set(range(count()))
    else:
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            holders.setdefault(index[0].indices(members)[:2], set()).add(device.process_index)
    parts: list[list[int]] = [[] for _ in range(count())]
    for (first, last), several in sorted(holders.items()):
        for process, part in zip(sorted(several), np.array_split(np.arange(first, last), len(several)), strict=True):
            parts[process].extend(part)
    return [np.array(own, int) for own in parts]


def _rows(leaf: jax.Array | np.ndarray, members: np.ndarray) -> np.ndarray:
    """The rows of these members, from the parts of the array that this process holds."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)[members]
    rows = np.empty((len(members), *leaf.shape[1:]), leaf.dtype)
    found = np.zeros(len(members), bool)
    for shard in leaf.addressable_shards:
        if shard.data.shape[1:] != leaf.shape[1:]:
            raise ValueError(
                f"got an output of shape {leaf.shape} of which a device holds {shard.data.shape}; outputs may be split "
                "over members alone. Gather the other axes in the function that members.apply evaluates."
            )
        first, last, _ = shard.index[0].indices(leaf.shape[0])
        here = (first <= members) & (members < last) & ~found
        if here.any():
            rows[here] = np.asarray(shard.data)[members[here] - first]
            found |= here
    if not found.all():
        raise ValueError("got outputs whose leaves are split over different devices; the same for all is required.")
    return rows
