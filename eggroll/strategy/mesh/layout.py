"""Which of the two layouts of the update a mesh gets: that which takes less time among those that fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import optax

from eggroll.strategy.mesh.compiler_costs import compiled
from eggroll.strategy.mesh.costs import RATES, UpdateCost, update_cost
from eggroll.strategy.mesh.placement import make_placement
from eggroll.strategy.mesh.sharding import AXIS
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import Population


def update_costs(
    settings: Population, plan: Callable[[], Plan], optimizer: optax.GradientTransformationExtraArgs
) -> dict[str, UpdateCost]:
    """The costs of both layouts by the compiler's figures; none where there is nothing to choose.

    Args:
        settings: the population and its mesh.
        plan: makes the plan by shapes.
        optimizer: that of the run.

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
    figures = compiled(Plan(leaves), settings.distribution, optimizer)
    found = {}
    for update in ("members", "weights"):
        placement = make_placement(settings.mesh, settings.sharding, update, leaves)
        found[update] = update_cost(placement, Plan(leaves), settings, rates, figures)
    return found


def cheapest(costs: Mapping[str, UpdateCost], room: float = math.inf) -> str:
    """The layout that takes least time among those that fit `room` bytes; `"members"` where there is no choice."""
    return min(costs, key=lambda name: (costs[name].held > room, costs[name].seconds), default="members")


def device_memory() -> float:
    """Bytes that a device may use, as far as it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or math.inf
