"""How many members are evaluated at once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.interpreter import Program
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


def units_per_chunk(chunk: int | str, program: Program, plan: Plan, units: int, signs: int) -> int:
    """Units (pairs, or single members) in a chunk.

    "auto" takes as many as fit the working set: what one member's largest operation reads and writes, and its noise.
    On a CPU the working set is a cache's size (measured: several times faster than the whole population at once), on
    an accelerator a share of its memory. A near divisor of the population is preferred, so that no smaller last chunk
    has to be compiled.

    Args:
        chunk: members in a chunk, or "auto". Rounded up to whole units.
        program: the traced function of one member.
        plan: what each parameter gets.
        units: units in all.
        signs: members in a unit.

    Returns:
        Between 1 and `units`.
    """
    if chunk != "auto":
        return min(units, -(-int(chunk) // signs))
    per_unit = signs * working_set(program.jaxpr) + 4 * plan.numbers
    return _near_divisor(units, max(1, min(units, _budget() // max(per_unit, 1))))


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


def working_set(jaxpr: Any) -> int:
    """Bytes that the largest operation of one member reads and writes, its inputs' own storage apart."""
    jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
    outer = {*jaxpr.invars, *jaxpr.constvars}
    largest = 0
    for eqn in jaxpr.eqns:
        own = [v for v in eqn.invars if not isinstance(v, jax_compat.Literal) and v not in outer]
        size = sum(_bytes(v.aval) for v in [*own, *eqn.outvars])
        inner = max((working_set(j) for j in jax_compat.inner_jaxprs(eqn)), default=0)
        largest = max(largest, size, inner)
    return largest


def _bytes(aval: Any) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return int(np.prod(getattr(aval, "shape", ()), dtype=np.int64)) * itemsize
