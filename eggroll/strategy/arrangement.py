"""How the members of a generation are laid out in memory: how many at once, and who shares noise."""

from __future__ import annotations

from typing import NamedTuple

import jax

from eggroll.strategy.chunking import FEW_BYTES, auto_units
from eggroll.strategy.perturbation import Sampler
from eggroll.strategy.population import Population
from eggroll.strategy.working_set import Need

LARGE = 1 << 16  # multiplications of a row; in smaller products, copies of the noise cost more than they save


class Arrangement(NamedTuple):
    """How members are evaluated.

    Attributes:
        units: how many at once on a device.
        copies: whether each member of a pair has a copy of the pair's noise.
    """

    units: int
    copies: bool = False


def may_copy(population: Population, sampler: Sampler) -> bool:
    """Whether copies of a pair's noise can pay at all, whatever the function."""
    leaves = sampler.plan.leaves
    return (
        jax.default_backend() == "cpu"
        and population.antithetic
        and population.distribution == "rademacher"  # copies are bytes
        and all(leaf.rank == 1 for leaf in leaves if leaf.kind == "low_rank")
        and not any(sampler.seeded(leaf) for leaf in leaves)
    )


def arrange(population: Population, sampler: Sampler, need: Need, units: int) -> Arrangement:
    """The arrangement of a function that needs so much for a member, for `units` units on each device.

    XLA's CPU library puts a rank-1 correction into the product's own epilogue where inputs, factors and outputs are
    plain matrices `[members, n]`. A factor that two members share is a broadcast, which keeps it out: the outputs are
    then written, read and written again. So each member gets a copy where it has a single row (with more, sharing
    saves more), outside of loops (each turn would read the copies).

    Args:
        population: who the members are.
        sampler: draws their noise.
        need: of one member.
        units: in all, on a device.
    """
    signs = population.signs
    copies = may_copy(population, sampler) and need.rows == 1 and need.flops >= LARGE and not need.loops
    if population.chunk != "auto":
        at_once = min(units, -(-int(population.chunk) // signs))
    else:
        size = signs * need.bytes + (signs if copies else 4) * sampler.plan.numbers
        # In an epilogue intermediate results are never stored.
        at_once = auto_units(size, units, signs * need.rows, few_bytes=FEW_BYTES * (2 if copies else 1))
    # XLA (JAX 0.10) takes twice as long, or more, for a square product whose outputs are reduced in its epilogue.
    return Arrangement(at_once, copies and at_once * signs not in need.columns)
