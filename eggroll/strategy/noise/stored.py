"""Noise that is computed once and stored.

XLA would compute it anew inside every operation that reads it, for every row that a factor meets. On CPUs it ignores
`optimization_barrier` as it fuses, but does not fuse out of a call that stays one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.engine import jax_compat
from eggroll.strategy.noise.sampler import Noise, Sampler
from eggroll.strategy.plan.leaves import LeafPlan, Plan


def drawn_once(sampler: Sampler, words: jax.Array) -> Noise:
    """`sampler.draw(words)`, in memory: noise of `U` units from words `[U, W]`."""
    return _in_memory(sampler.draw, words)


def drawn_copies(sampler: Sampler, words: jax.Array, signs: int) -> Noise:
    """`sampler.draw(words)` with each unit's noise `signs` times in a row: noise of `U·signs` members.

    In memory it is signed bytes, which their readers widen: so copies take half of what floats for units would.
    """
    leaves = sampler.plan.leaves
    in_bytes = replace(sampler, plan=Plan(tuple(replace(leaf, dtype="int8") for leaf in leaves)))

    def draw(words: jax.Array) -> Noise:
        return jax.tree.map(lambda x: _repeated(x, signs), in_bytes.draw(words))

    def widened(leaf: LeafPlan, noise: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(leaf.dtype), noise)

    return [widened(leaf, noise) for leaf, noise in zip(leaves, _in_memory(draw, words), strict=True)]


def _repeated(x: jax.Array, times: int) -> jax.Array:
    """Every row of `x`, `times` in a row; a gather, as `jnp.repeat` makes it, would take longer than drawing."""
    copies = jnp.broadcast_to(x[:, None], (len(x), times, *x.shape[1:]))
    return copies.reshape(len(x) * times, *x.shape[1:])


def _in_memory(fun: Callable[[jax.Array], Any], words: jax.Array) -> Any:
    if jax.default_backend() != "cpu":
        return lax.optimization_barrier(fun(words))
    # As matrices: XLA lays a trailing axis of length one out its own way, and copies at the call's end to undo it.
    made = jax.eval_shape(fun, words)
    flat = jax_compat.call_apart(lambda w: [x.reshape(len(x), -1) for x in jax.tree.leaves(fun(w))], words)
    leaves, tree = jax.tree.flatten(made)
    return tree.unflatten([x.reshape(like.shape) for x, like in zip(flat, leaves, strict=True)])
