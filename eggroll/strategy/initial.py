"""The state of generation 0."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from eggroll.engine.paths import leaf_paths
from eggroll.strategy import precision
from eggroll.strategy.frozen import without
from eggroll.strategy.keys import as_threefry
from eggroll.strategy.optimizer import init_optimizer
from eggroll.strategy.placement import Placement, make_placement, on_mesh, place
from eggroll.strategy.plan import LeafPlan, check_params
from eggroll.strategy.population import Population
from eggroll.strategy.problem import check_no_module
from eggroll.strategy.rules import FrozenRule, Rules
from eggroll.strategy.state import State


def initial_state(
    params: Any, key: jax.Array, optimizer: optax.GradientTransformationExtraArgs, rules: Rules, settings: Population
) -> State:
    """A fresh state, on the mesh of the settings if there is one; see `ES.init`."""
    check_no_module(params)
    params = on_mesh(params, settings)
    chosen = check_params(params, rules)
    still = [isinstance(chosen.get(path), FrozenRule) for path in leaf_paths(params)]

    def rest(params: Any) -> tuple[Any, Any]:
        moving = without(params, still)
        master = precision.master_copies(moving)
        return master, init_optimizer(optimizer, precision.full(moving, master))

    key, generation = as_threefry(key), jnp.zeros((), jnp.int32)
    if settings.mesh is None:
        master, opt_state = rest(params)
        return State(params, master, opt_state, key, generation)
    master, opt_state = jax.eval_shape(rest, params)
    where = _placement(params, still, settings).of_state(State(params, master, opt_state, key, generation))
    master, opt_state = jax.jit(rest, out_shardings=(where.master, where.opt_state))(params)
    return State(params, master, opt_state, place(key, where.key), place(generation, where.generation))


def _placement(params: Any, still: list[bool], settings: Population) -> Placement:
    leaves = [
        LeafPlan(path, tuple(x.shape), str(x.dtype), "frozen" if fixed else "dense")
        for path, x, fixed in zip(leaf_paths(params), jax.tree.leaves(params), still, strict=True)
    ]
    assert settings.mesh is not None
    return make_placement(settings.mesh, settings.sharding, settings.update, leaves)
