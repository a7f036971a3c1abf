"""The second half of a generation: from shaped fitness to new parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy.generation import Generation
from eggroll.strategy.mesh.placement import place
from eggroll.strategy.optimizer import updates
from eggroll.strategy.plan import parameters
from eggroll.strategy.plan.parameters import put_back, without
from eggroll.strategy.state import State

JOINED = 1 << 16  # numbers in a leaf


def moved_if(
    some: jax.Array,
    optimizer: optax.GradientTransformationExtraArgs,
    generation: Generation,
    state: State,
    weights: jax.Array,
    words: jax.Array | None,
    loss: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """The state after one update, if there is one to make.

    Args:
        some: bool scalar; if it is false, the state stays as it is.
        optimizer: turns the gradient into a change of the parameters.
        generation: whose members the weights belong to.
        state: before the update.
        weights: `[N]`, shaped fitness.
        words: from `Generation.words`, or None to draw the noise anew.
        loss: scalar, for optimizers that watch it.

    Returns:
        (the new state, the norms of gradient and update as float32: 0 if there was none).
    """
    still = [leaf.kind == "frozen" for leaf in generation.plan.leaves]
    placement = generation.placement

    def moved() -> tuple[State, dict[str, jax.Array]]:
        params = without(state.params, still)
        full = parameters.full(params, state.master)
        gradient = without(generation.gradient(weights, state.params, words), still)
        if placement is not None:
            full = placement.pinned_tree(full, state.params, placement.update_specs)
        change, opt_state = updates(optimizer, gradient, state.opt_state, full, loss)
        params, master = parameters.rounded(optax.apply_updates(full, change), params)
        if placement is not None:  # rounded before they are made whole: half the bytes
            params = placement.pinned_tree(params, state.params, placement.update_specs)
        params = put_back(params, state.params, still)
        new = State(params, master, opt_state, state.key, state.generation + jnp.int32(1))
        norm = _norm if placement is None else _norm_of_split
        return _held(generation, new), {"gradient_norm": norm(gradient), "update_norm": norm(change)}

    none = {"gradient_norm": jnp.float32(0), "update_norm": jnp.float32(0)}
    # A branch, not a select for every array: those were a tenth of what has to be compiled.
    new, norms = jax.lax.cond(some, moved, lambda: (state, none))
    return _held(generation, new), norms


def _held(generation: Generation, state: State) -> State:
    """On a mesh, the state as `ES.init` placed it."""
    placement = generation.placement
    return state if placement is None else place(state, placement.of_state(state))


def _norm_of_split(tree: Any) -> jax.Array:
    """The norm of leaves that may be split over devices, each squared where it lies."""
    leaves = [x.astype(accumulator_dtype(x.dtype)) for x in jax.tree.leaves(tree)]
    return jnp.asarray(optax.tree.norm(leaves), jnp.float32)


def _norm(tree: Any) -> jax.Array:
    """The norm of all leaves together; small ones are joined first: each reduction is a kernel to compile."""
    leaves = [x.astype(accumulator_dtype(x.dtype)).ravel() for x in jax.tree.leaves(tree)]
    small = [x for x in leaves if x.size <= JOINED]
    large = [x for x in leaves if x.size > JOINED]
    joined = [jnp.concatenate([x.astype(jnp.result_type(*small)) for x in small])] if small else []
    return jnp.asarray(optax.tree.norm(large + joined), jnp.float32)
