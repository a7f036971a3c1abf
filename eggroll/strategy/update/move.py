"""One update of the state: the gradient through the optimizer, rounded, and placed as it was."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from eggroll.engine.annotations import Flag, PyTree, Scalar
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.parameters import full, put_back, rounded, without
from eggroll.strategy.state import Placement, State, place
from eggroll.strategy.update.optimizer import updates

JOINED = 1 << 12  # numbers in a leaf: sums of more are in a library on CPUs, and nothing to compile


def moved_if(
    some: Flag,
    optimizer: optax.GradientTransformationExtraArgs,
    plan: Plan,
    placement: Placement | None,
    gradient_of: Callable[[PyTree], PyTree],
    state: State,
    loss: Scalar,
) -> tuple[State, dict[str, jax.Array]]:
    """The state after one update, if there is one to make.

    Args:
        some: bool scalar; if it is false, the state stays as it is.
        optimizer: turns the gradient into a change of the parameters.
        plan: of the generation.
        placement: on a mesh, where things lie.
        gradient_of: parameters → the generation's gradient.
        state: before the update.
        loss: scalar, for optimizers that watch it.

    Returns:
        (the new state, the norms of gradient and update as float32: 0 if there was none).
    """
    still = [leaf.kind == "frozen" for leaf in plan.leaves]

    def moved() -> tuple[State, dict[str, jax.Array]]:
        params = without(state.params, still)
        wide = full(params, state.master)
        gradient = without(gradient_of(state.params), still)
        if placement is not None:
            wide = placement.pinned_tree(wide, state.params, placement.update_specs)
        change, opt_state = updates(optimizer, gradient, state.opt_state, wide, loss)
        params, master = rounded(optax.apply_updates(wide, change), params)
        if placement is not None:  # rounded before they are made whole: half the bytes
            params = placement.pinned_tree(params, state.params, placement.update_specs)
        params = put_back(params, state.params, still)
        new = State(params, master, opt_state, state.key, state.generation + jnp.int32(1))
        norm = _norm if placement is None else _norm_of_split
        return _held(placement, new), {"gradient_norm": norm(gradient), "update_norm": norm(change)}

    none = {"gradient_norm": jnp.float32(0), "update_norm": jnp.float32(0)}
    # A branch, not a select for every array: those were a tenth of what has to be compiled.
    new, norms = jax.lax.cond(some, moved, lambda: (state, none))
    return _held(placement, new), norms


def _held(placement: Placement | None, state: State) -> State:
    """On a mesh, the state as `ES.init` placed it."""
    return state if placement is None else place(state, placement.of_state(state))


def _norm_of_split(tree: PyTree) -> jax.Array:
    """The norm of leaves that may be split over devices, each squared where it lies."""
    leaves = [x.astype(accumulator_dtype(x.dtype)) for x in jax.tree.leaves(tree)]
    return jnp.asarray(optax.tree.norm(leaves), jnp.float32)


def _norm(tree: PyTree) -> jax.Array:
    """The norm of all leaves together; small ones are joined first: each of their sums would be a kernel to compile."""
    leaves = [x.astype(accumulator_dtype(x.dtype)).ravel() for x in jax.tree.leaves(tree)]
    leaves = [part for x in leaves for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
    small = [x for x in leaves if x.size < JOINED]
    large = [x for x in leaves if x.size >= JOINED]
    joined = [jnp.concatenate([x.astype(jnp.result_type(*small)) for x in small])] if small else []
    return jnp.asarray(optax.tree.norm(large + joined), jnp.float32)
