"""The second half of a generation: from shaped fitness to new parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from eggroll.engine.lowrank import accumulator_dtype
from eggroll.strategy import precision
from eggroll.strategy.frozen import put_back, without
from eggroll.strategy.generation import Generation
from eggroll.strategy.optimizer import updates
from eggroll.strategy.state import State

JOINED = 1 << 16  # numbers in a leaf


def moved(
    optimizer: optax.GradientTransformationExtraArgs,
    generation: Generation,
    state: State,
    weights: jax.Array,
    words: jax.Array | None,
    loss: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """The state after one update.

    Args:
        optimizer: turns the gradient into a change of the parameters.
        generation: whose members the weights belong to.
        state: before the update.
        weights: `[N]`, shaped fitness.
        words: from `Generation.words`, or None to draw the noise anew.
        loss: scalar, for optimizers that watch it.

    Returns:
        (the new state, the norms of gradient and update as float32).
    """
    still = [leaf.kind == "frozen" for leaf in generation.plan.leaves]
    params = without(state.params, still)
    full = precision.full(params, state.master)
    gradient = without(generation.gradient(weights, state.params, words), still)
    change, opt_state = updates(optimizer, gradient, state.opt_state, full, loss)
    params, master = precision.rounded(optax.apply_updates(full, change), params)
    params = put_back(params, state.params, still)
    new = State(params, master, opt_state, state.key, state.generation + jnp.int32(1))
    return new, dict(zip(("gradient_norm", "update_norm"), _norms(gradient, change), strict=True))


def _norms(first: Any, second: Any) -> tuple[jax.Array, jax.Array]:
    """The norms of all leaves of two trees with the same shapes, float32.

    Each reduction is several kernels to compile: both trees share one for each leaf, and small leaves are joined.
    """
    pairs = [_widened(x, y) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)]
    small = [pair for pair in pairs if pair[0].size <= JOINED]
    large = [pair for pair in pairs if pair[0].size > JOINED]
    if small:
        dtype = jnp.result_type(*(x for x, _ in small))
        large.append(tuple(jnp.concatenate([x.astype(dtype) for x in side]) for side in zip(*small, strict=True)))
    sums = [lax.reduce((x * x, y * y), (np.array(0, x.dtype),) * 2, _add_both, (0,)) for x, y in large]
    totals = (sum((pair[side].astype(jnp.float32) for pair in sums), jnp.float32(0)) for side in (0, 1))
    return tuple(map(jnp.sqrt, totals))


def _widened(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both in one row, as float32 or wider."""
    dtype = jnp.result_type(accumulator_dtype(x.dtype), accumulator_dtype(y.dtype))
    return x.ravel().astype(dtype), y.ravel().astype(dtype)


def _add_both(a: tuple, b: tuple) -> tuple:
    return a[0] + b[0], a[1] + b[1]
