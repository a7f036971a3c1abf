"""What an update costs each device of a mesh, summed by members or by weights.

By arithmetic, not by compiling both: XLA counts the body of a loop once, however often it runs, so that its cost of a
sum over chunks of members is short by the number of chunks; all members in one chunk would not fit a chip's memory,
which its compiler checks; and two more compilations would hold up every first generation. A test holds the figures here
to the compiler's own for programs of one chunk, and `bench.scaling` to the collectives of whole steps. (On CPUs XLA
gathers half precision as float32; here it counts as what it is.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from eggroll.kernels import words_for
from eggroll.strategy.placement import Placement, make_placement
from eggroll.strategy.plan import LeafPlan, Plan
from eggroll.strategy.population import Population
from eggroll.strategy.sharding import AXIS, axes_of

WORD_OPERATIONS, NUMBER_OPERATIONS = 60, 4  # of 32 bits: to draw a word by threefry, to make a number of its bits
MOMENTS = 2  # arrays of the optimizer's state, as large as the parameters: Adam's


@dataclass(frozen=True)
class Rates:
    """What a device does in a second, to an order of magnitude: public figures of one chip of its kind.

    Attributes:
        matrix: multiplications and additions of float32 matrix products.
        vector: 32-bit operations on vectors.
        memory: bytes read or written.
        link: bytes sent to neighbours along one axis of the mesh.
    """

    matrix: float
    vector: float
    memory: float
    link: float


RATES = {
    # v5p: 459e12 in bfloat16, six passes for float32; two links of 100 GB/s along an axis of the torus.
    "tpu": Rates(matrix=76e12, vector=14e12, memory=2.765e12, link=200e9),
    "gpu": Rates(matrix=67e12, vector=33e12, memory=3.35e12, link=450e9),  # H100 with NVLink
    "cpu": Rates(matrix=50e9, vector=10e9, memory=10e9, link=10e9),
}


class UpdateCost(NamedTuple):
    """What one update costs each device.

    Attributes:
        flops: of the products of factors.
        numbers: of noise that are drawn.
        moved: bytes that the optimizer reads and writes.
        crossing: bytes that cross `"population"`: sums that are added up, or new weights that are made whole.
        held: bytes of weights, master copies, optimizer state and sums.
        seconds: all of the work, one after the other, at the platform's `Rates`.
    """

    flops: float
    numbers: float
    moved: float
    crossing: float
    held: float
    seconds: float


def update_costs(settings: Population, plan: Callable[[], Plan]) -> dict[str, UpdateCost]:
    """The costs of both layouts; none where there is nothing to choose.

    Args:
        settings: the population and its mesh.
        plan: makes the plan by shapes.

    Returns:
        `"members"` and `"weights"` → cost; empty without a mesh, on one device, or without a plan by shapes.
    """
    if settings.mesh is None or settings.mesh.shape[AXIS] == 1:
        return {}
    try:
        leaves = plan().leaves
    except ValueError:  # the function will tell; both layouts give the same result
        return {}
    rates = RATES.get(jax.default_backend(), RATES["gpu"])
    found = {}
    for update in ("members", "weights"):
        placement = make_placement(settings.mesh, settings.sharding, update, leaves)
        found[update] = update_cost(placement, Plan(leaves), settings, rates)
    return found


def cheapest(costs: Mapping[str, UpdateCost], room: float = math.inf) -> str:
    """The layout that takes least time among those that fit `room` bytes; `"members"` where there is no choice."""
    return min(costs, key=lambda name: (costs[name].held > room, costs[name].seconds), default="members")


def device_memory() -> float:
    """Bytes that a device may use, as far as it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or math.inf


def update_cost(placement: Placement, plan: Plan, settings: Population, rates: Rates) -> UpdateCost:
    """What one update costs each device in the layout of a placement."""
    total = np.zeros(5)
    for leaf, spec, part in zip(plan.leaves, placement.specs, placement.parts, strict=True):
        if leaf.kind in ("low_rank", "dense"):
            shards = math.prod(placement.mesh.shape[axis] for entry in spec for axis in axes_of(entry))
            total += _of_leaf(leaf, part is not None, shards, settings, placement.mesh.shape[AXIS])
    flops, numbers, moved, crossing, held = (float(x) for x in total)
    operations = numbers * (WORD_OPERATIONS * words_for(32, settings.distribution) / 32 + NUMBER_OPERATIONS)
    times = flops / rates.matrix, operations / rates.vector, moved / rates.memory
    ring = (placement.mesh.shape[AXIS] - 1) / placement.mesh.shape[AXIS]
    apart = 2 if not any(p is not None for p in placement.parts) else 1  # a ring adds up, then hands round
    return UpdateCost(flops, numbers, moved, crossing, held, sum(times) + apart * ring * crossing / rates.link)


def _of_leaf(leaf: LeafPlan, split: bool, shards: int, settings: Population, devices: int) -> np.ndarray:
    """`[flops, numbers, bytes moved, bytes crossing, bytes held]` of one parameter on one device."""
    size, by_weights = math.prod(leaf.shape) / shards, split and leaf.kind == "low_rank"
    itemsize = jax.numpy.dtype(leaf.dtype).itemsize
    units = settings.units / devices
    flops = 2 * units * size * (leaf.rank or 1)
    numbers = leaf.numbers * units * (devices if by_weights else 1)
    own = size / devices if split else size  # of what only the update needs
    moved = own * (2 * 4 * (1 + MOMENTS) + itemsize)
    crossing = (0 if by_weights else 4 * size) + (itemsize * size if split else 0)
    master = 4 if itemsize < 4 else 0
    held = itemsize * size + own * (master + 4 * MOMENTS) + 4 * (own if by_weights else size)
    return np.array([flops, numbers, moved, crossing, held])
