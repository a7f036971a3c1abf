"""How many members are evaluated at once."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

from eggroll.strategy.plan.leaves import Plan

CPU_WORKING_SET = 8 << 20  # bytes: what an operation reads and writes for a chunk stays in the caches
ENOUGH_ROWS = 1024  # in a product with a shared matrix: with fewer, reading the matrix takes longer than multiplying
CPU_SHARE = 1 / 16  # of the machine's memory, that a chunk may take for the sake of enough rows
FEW_ROWS, FEW_BYTES = 4 * ENOUGH_ROWS, 8 * CPU_WORKING_SET  # a population this small is not worth a loop over chunks
ACCELERATOR_SHARE = 0.25  # of the memory that the device reports
ACCELERATOR_WORKING_SET = 1 << 30  # bytes, where the device does not tell its memory


Kept = TypeVar("Kept")
_CHOSEN: OrderedDict[Hashable, Any] = OrderedDict()
REMEMBERED = 256  # choices


def remembered(key: Hashable, choose: Callable[[], Kept]) -> Kept:
    """What was chosen or found earlier in this process for the same key; else `choose()`, kept."""
    if key not in _CHOSEN:
        _CHOSEN[key] = choose()
        if len(_CHOSEN) > REMEMBERED:
            _CHOSEN.popitem(last=False)
    _CHOSEN.move_to_end(key)
    return _CHOSEN[key]


def auto_units(need: int, units: int, rows: int = 0, *, few_bytes: int = FEW_BYTES) -> int:
    """Units (pairs, or single members) in a chunk under `chunk="auto"`: as many as fit the working set.

    On a CPU the working set is a cache's size, but more where so few members bring few rows to the products with shared
    matrices, which every chunk reads again (one row each: a decoder). All units are one chunk where they make no more
    than `FEW_ROWS` and `few_bytes`: a loop that puts outputs together would take longer. On an accelerator it is a
    share of its memory. A near divisor of the population is preferred: no smaller last chunk has to be compiled.

    Args:
        need: bytes of one unit: what its largest operation reads and writes, and its noise.
        units: units in all.
        rows: of one unit in the largest product with a matrix that all members share. Default 0: there is none.
        few_bytes: of a population that is one chunk.

    Returns:
        Between 1 and `units`.
    """
    fitting = _budget() // max(need, 1)
    if rows and jax.default_backend() == "cpu":
        if units * rows <= FEW_ROWS and units * need <= few_bytes:
            return units
        fitting = max(fitting, min(-(-ENOUGH_ROWS // rows), int(_host_memory() * CPU_SHARE) // max(need, 1)))
    return near_divisor(units, max(1, min(units, fitting)))


def keep_words(need: int) -> bool:
    """Whether all random words of a generation are kept from its evaluation to its update."""
    return need <= 4 * _budget()


def units_per_update(plan: Plan, units: int) -> int:
    """Units whose noise is summed at once in the estimator: on a CPU as much noise as there are sums to add it to."""
    budget = _budget()
    if jax.default_backend() == "cpu":
        sums = 4 * sum(math.prod(leaf.shape) for leaf in plan.leaves)
        budget = min(max(budget, 2 * sums), 4 * budget)
    return near_divisor(units, max(1, min(units, budget // max(4 * plan.numbers, 1))))


def near_divisor(n: int, limit: int) -> int:
    """The largest divisor of `n` in the upper half of what the limit allows; else the limit."""
    for d in range(limit, max(limit // 2, 0), -1):
        if n % d == 0:
            return d
    return limit


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 4 << 30


def _budget() -> int:
    if jax.default_backend() == "cpu":
        return CPU_WORKING_SET
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return int(limit * ACCELERATOR_SHARE) if limit else ACCELERATOR_WORKING_SET
