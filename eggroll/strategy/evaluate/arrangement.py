"""How the members of a generation are laid out in memory: how many at once, and who shares noise."""

from __future__ import annotations

from typing import NamedTuple

import jax

from eggroll.engine import jax_compat
from eggroll.ops.noise import DISTRIBUTIONS
from eggroll.strategy.evaluate.chunking import FEW_BYTES, auto_units
from eggroll.strategy.evaluate.working_set import Need
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.population import Population

LARGE = 1 << 16  # multiplications of a row; in smaller products, copies of the noise cost more than they save


class Arrangement(NamedTuple):
    """How members are evaluated.

    Attributes:
        units: how many at once on a device.
        copies: whether each member has its unit's noise to itself, as bytes.
    """

    units: int
    copies: bool = False


def may_copy(population: Population, sampler: Sampler) -> bool:
    """Whether noise of a member's own, as bytes, can pay at all, whatever the function.

    It needs rank 1 and no kernel in every parameter: what a fusion cannot take would be widened in memory.
    """
    leaves = sampler.plan.leaves
    return (
        jax.default_backend() == "cpu"
        and jax_compat.CORRECTIONS_ARE_FREE
        and DISTRIBUTIONS[population.distribution].integers  # bytes
        and all(leaf.rank == 1 for leaf in leaves if leaf.kind == "low_rank")
        and not any(sampler.seeded(leaf) for leaf in leaves)
    )


def arrange(population: Population, sampler: Sampler, need: Need, units: int) -> Arrangement:
    """The arrangement of a function that needs so much for a member, for `units` units on each device.

    XLA's CPU library (of JAX 0.10) puts a rank-1 correction into the product's own epilogue where inputs, factors and
    outputs are plain matrices `[members, n]`. A factor that two members share is a broadcast, which keeps it out: the
    outputs are then written, read and written again. So each member gets a copy where it has a single row (with more,
    sharing saves more), outside of loops (each turn would read the copies). Bytes, which the epilogue widens, take a
    quarter of the memory: also where members are no pairs.

    Args:
        population: who the members are.
        sampler: draws their noise.
        need: of one member.
        units: in all, on a device.
    """
    one_row = need.rows == 1 and need.flops >= LARGE and not need.loops
    if one_row and may_copy(population, sampler):
        arranged = Arrangement(_at_once(population, sampler, need, units, copies=True), copies=True)
        if not _square(arranged.units, units, population.signs, need):
            return arranged
    return Arrangement(_at_once(population, sampler, need, units, copies=False))


def _at_once(population: Population, sampler: Sampler, need: Need, units: int, *, copies: bool) -> int:
    """Units in a chunk."""
    signs = population.signs
    if population.chunk != "auto":
        return min(units, -(-int(population.chunk) // signs))
    size = signs * need.bytes + (signs if copies else 4) * sampler.plan.numbers
    # In an epilogue intermediate results are never stored.
    return auto_units(size, units, signs * need.rows, few_bytes=FEW_BYTES * (2 if copies else 1))


def _square(at_once: int, units: int, signs: int, need: Need) -> bool:
    """Whether a chunk, or what is left after the whole ones, has as many members as a product has columns.

    XLA (JAX 0.10) takes twice as long, or more, for a square product whose outputs are reduced in its epilogue.
    """
    return bool(need.columns & {at_once * signs, units % at_once * signs})
