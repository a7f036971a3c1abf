"""How many members are evaluated at once."""

from __future__ import annotations

from typing import Any

import jax

from eggroll.strategy.integers import as_count
from eggroll.strategy.plan import Plan

CPU_WORKING_SET = 4 << 20  # bytes: activations of a chunk that stay in a core's second-level cache
ACCELERATOR_SHARE = 0.25  # of the memory that the device reports
ACCELERATOR_WORKING_SET = 1 << 30  # bytes, where the device does not tell its memory


def check_chunk(chunk: Any) -> int | str:
    """`chunk` as a Python integer, or "auto"; raises unless it is one of them."""
    if isinstance(chunk, str) and chunk == "auto":
        return chunk
    return as_count("chunk", chunk, 1, ' It is the number of members evaluated at once; "auto" chooses one.')


def auto_units(need: int, units: int) -> int:
    """Units (pairs, or single members) in a chunk under `chunk="auto"`: as many as fit the working set.

    On a CPU the working set is a cache's size (measured: a tenth faster than 256 members of a small network at once),
    on an accelerator a share of its memory. A near divisor of the population is preferred: no smaller last chunk then
    has to be compiled.

    Args:
        need: bytes of one unit: what its largest operation reads and writes, and its noise.
        units: units in all.

    Returns:
        Between 1 and `units`.
    """
    return _near_divisor(units, max(1, min(units, _budget() // max(need, 1))))


def keep_words(need: int) -> bool:
    """Whether all random words of a generation are kept from its evaluation to its update."""
    return need <= 4 * _budget()


def units_per_update(plan: Plan, units: int) -> int:
    """Units whose noise is summed at once in the estimator."""
    budget = 16 * CPU_WORKING_SET if jax.default_backend() == "cpu" else _budget()
    return _near_divisor(units, max(1, min(units, budget // max(4 * plan.numbers, 1))))


def _near_divisor(n: int, limit: int) -> int:
    for d in range(limit, max(limit // 2, 0), -1):
        if n % d == 0:
            return d
    return limit


def _budget() -> int:
    if jax.default_backend() == "cpu":
        return CPU_WORKING_SET
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return int(limit * ACCELERATOR_SHARE) if limit else ACCELERATOR_WORKING_SET
