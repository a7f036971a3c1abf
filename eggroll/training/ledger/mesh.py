"""The mesh of a run in its ledger's settings, and the one that a replay gets: the same for equal bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from eggroll.strategy.population import AXIS, Population, Sharding, ShardingRules, as_sharding, axes_of
from eggroll.training.errors import check_known

Recorded = Mapping[str, Any] | None


def mesh_to_json(population: Population) -> dict[str, Any] | None:
    """How a run was laid out: `axes`, `sharding`, `update`; None without a mesh.

    Example:
        >>> mesh_to_json(Population(4)) is None
        True
    """
    if population.mesh is None:
        return None
    rules = [[pattern, [list(axes_of(entry)) for entry in spec]] for pattern, spec in population.sharding.pairs]
    return {"axes": list(map(list, population.mesh.shape.items())), "sharding": rules, "update": population.update}


def mesh_like(recorded: Recorded) -> Mesh | None:
    """A mesh as the run's, of this process's devices; None where the run had none, or there are too few of them."""
    names, sizes = zip(*recorded["axes"], strict=True) if recorded else ((), ())
    if not names or math.prod(sizes) > jax.local_device_count():
        return None
    return jax.make_mesh(sizes, names, devices=jax.local_devices()[: math.prod(sizes)])


def laid_out(recorded: Recorded, mesh: Mesh | None, sharding: Sharding) -> tuple[ShardingRules, str]:
    """`(sharding, update)` of a replay: what it is given, else the run's as far as the mesh has its axes."""
    check_known("a mesh", recorded or (), ("axes", "sharding", "update"), ValueError)
    update = recorded["update"] if recorded else "members"
    if mesh is None or sharding is not None or not recorded:
        return as_sharding(sharding, mesh), update
    pairs = [(pattern, PartitionSpec(*map(_entry, spec))) for pattern, spec in recorded["sharding"]]
    named = {axis for _, spec in pairs for entry in spec for axis in axes_of(entry)}
    return as_sharding(pairs if pairs and named <= set(mesh.shape) else None, mesh), update


def _entry(axes: list[str]) -> Any:
    return axes[0] if len(axes) == 1 else tuple(axes) or None


def mesh_difference(recorded: Recorded, here: Recorded) -> str | None:
    """How the layout of a replay, `here`, differs from the run's, if that can be seen in the bits of its sums.

    Example:
        >>> mesh_difference({"axes": [["population", 4]], "sharding": [], "update": "weights"}, None)
        'devices: population=4, by weights → one device'
    """
    was, now = _told(recorded), _told(here)
    return None if was == now else f"devices: {was} → {now}"


def _told(recorded: Recorded) -> str:
    axes = {name: size for name, size in (recorded or {"axes": []})["axes"] if size > 1}
    if not recorded or not axes:
        return "one device"
    by = f", by {recorded['update']}" if AXIS in axes else ""
    split = [f"{pattern} {tuple('+'.join(axes) or None for axes in spec)}" for pattern, spec in recorded["sharding"]]
    return ", ".join(f"{name}={size}" for name, size in axes.items()) + by + "".join(f", {one}" for one in split)
