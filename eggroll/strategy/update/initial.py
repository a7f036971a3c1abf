"""The state of generation 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.mesh.placement import Placement, make_placement, on_mesh, place
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.plan import parameters
from eggroll.strategy.plan.leaves import LeafPlan, check_params
from eggroll.strategy.plan.parameters import check_no_module, without
from eggroll.strategy.plan.rules import FrozenRule, Rules
from eggroll.strategy.population import Population
from eggroll.strategy.state import State
from eggroll.strategy.update.optimizer import init_optimizer


def initial_state(
    params: PyTree, key: jax.Array, optimizer: optax.GradientTransformationExtraArgs, rules: Rules, settings: Population
) -> State:
    """A fresh state, on the mesh of the settings if there is one; see `ES.init`."""
    check_no_module(params)
    params = on_mesh(params, settings)
    chosen = check_params(params, rules)
    still = [isinstance(chosen.get(path), FrozenRule) for path in leaf_paths(params)]

    return placed_state(params, still, optimizer, as_threefry(key), settings)


def placed_state(
    params: PyTree,
    frozen: Sequence[bool],
    optimizer: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    settings: Population,
) -> State:
    """`first_state`, on the mesh of the settings if there is one, where `params` are already."""
    if settings.mesh is None:
        return first_state(params, frozen, optimizer, key)
    shapes = jax.eval_shape(lambda params: first_state(params, frozen, optimizer, key), params)
    where = _placement(params, frozen, settings).of_state(shapes)
    made = jax.jit(
        lambda params: dataclasses.replace(first_state(params, frozen, optimizer, key), params=(), key=()),
        out_shardings=dataclasses.replace(where, params=(), key=()),
    )(params)
    return dataclasses.replace(made, params=params, key=place(key, where.key))


def first_state(
    params: PyTree, frozen: Sequence[bool], optimizer: optax.GradientTransformationExtraArgs, key: jax.Array
) -> State:
    """The state of generation 0, where its arrays happen to lie.

    Args:
        params: pytree of arrays.
        frozen: one flag per leaf, in order; the optimizer makes no state for these.
        optimizer: from `check_optimizer`.
        key: typed threefry key.

    Raises:
        TypeError: an optimizer that needs more than gradient, parameters and loss.
    """
    moving = without(params, frozen)
    master = parameters.master_copies(moving)
    opt_state = init_optimizer(optimizer, parameters.full(moving, master))
    return State(params, master, opt_state, key, jnp.zeros((), jnp.int32))


def _placement(params: PyTree, still: Sequence[bool], settings: Population) -> Placement:
    leaves = [
        LeafPlan(path, tuple(x.shape), str(x.dtype), "frozen" if fixed else "dense")
        for path, x, fixed in zip(leaf_paths(params), jax.tree.leaves(params), still, strict=True)
    ]
    assert settings.mesh is not None
    return make_placement(settings.mesh, settings.sharding, settings.update, leaves)
