"""What an update costs each device of a mesh, summed by members or by weights: the sum of its parts.

The parts (operations to draw a number, to add a chunk of noise, to change a parameter by Adam) are counted by hand: XLA
counts the body of a loop once, however often it runs, and its cost of a whole update is short by the number of chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from eggroll.ops import words_for
from eggroll.strategy.plan.leaves import LeafPlan, Plan
from eggroll.strategy.population import AXIS, Population, axes_of
from eggroll.strategy.state import Placement

WORD_OPERATIONS, NUMBER_OPERATIONS = 60, 4  # of 32 bits: to draw a word by threefry, to make a number of its bits
CHANGE_OPERATIONS = 12  # of Adam, for each number of the parameters
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
        operations: on vectors, to draw the noise and in the optimizer.
        seconds: all of the work, one after the other, at the platform's `Rates`.
    """

    flops: float
    numbers: float
    moved: float
    crossing: float
    held: float
    operations: float
    seconds: float


@dataclass(frozen=True)
class Figures:
    """What the parts of an update take.

    Attributes:
        number: operations to draw a number of noise, its share of random words included.
        change: operations of the optimizer for each number of the parameters.
        moments: numbers that the optimizer keeps for each of the parameters.
        product: operations to add the noise of one unit to a whole parameter.
    """

    number: float
    change: float
    moments: float
    product: Callable[[LeafPlan], float]


def counted(distribution: str) -> Figures:
    """The figures by hand, for Adam: threefry's rounds, and two operations for each number of a product."""
    number = WORD_OPERATIONS * words_for(32, distribution) / 32 + NUMBER_OPERATIONS
    return Figures(number, CHANGE_OPERATIONS, MOMENTS, lambda leaf: 2 * math.prod(leaf.shape) * (leaf.rank or 1))


def update_cost(placement: Placement, plan: Plan, settings: Population, rates: Rates) -> UpdateCost:
    """What one update costs each device in the layout of a placement.

    Args:
        placement: where parameters lie, and the layout.
        plan: how each is perturbed.
        settings: the population.
        rates: of a device.
    """
    figures = counted(settings.distribution)
    total = np.zeros(6)
    for leaf, spec, part in zip(plan.leaves, placement.specs, placement.parts, strict=True):
        if leaf.kind in ("low_rank", "dense"):
            shards = math.prod(placement.mesh.shape[axis] for entry in spec for axis in axes_of(entry))
            total += _of_leaf(leaf, part is not None, shards, settings, placement.mesh.shape[AXIS], figures)
    flops, numbers, moved, crossing, held, changes = (float(x) for x in total)
    noise = numbers * figures.number
    optimizer = max(changes / rates.vector, moved / rates.memory)  # an elementwise pass
    ring = (placement.mesh.shape[AXIS] - 1) / placement.mesh.shape[AXIS]
    apart = 2 if not any(p is not None for p in placement.parts) else 1  # a ring adds up, then hands round
    times = flops / rates.matrix, noise / rates.vector, optimizer, apart * ring * crossing / rates.link
    return UpdateCost(flops, numbers, moved, crossing, held, noise + changes, sum(times))


def _of_leaf(
    leaf: LeafPlan, split: bool, shards: int, settings: Population, devices: int, figures: Figures
) -> np.ndarray:
    """`[flops, numbers, bytes moved, crossing, held, operations of the optimizer]` of one parameter on one device."""
    size, by_weights = math.prod(leaf.shape) / shards, split and leaf.kind == "low_rank"
    itemsize = jax.numpy.dtype(leaf.dtype).itemsize
    units = settings.units / devices
    flops = units * figures.product(leaf) / shards
    numbers = leaf.numbers * units * (devices if by_weights else 1)
    own = size / devices if split else size  # of what only the update needs
    moved = own * (2 * 4 * (1 + figures.moments) + itemsize)
    crossing = (0 if by_weights else 4 * size) + (itemsize * size if split else 0)
    master = 4 if itemsize < 4 else 0
    held = itemsize * size + own * (master + 4 * figures.moments) + 4 * (own if by_weights else size)
    return np.array([flops, numbers, moved, crossing, held, own * figures.change])
