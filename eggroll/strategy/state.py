"""`State`: what a run carries from one generation to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from eggroll.engine.annotations import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The state of a run: an ordinary pytree to jit, shard and checkpoint.

    Attributes:
        params: the parameters, in the dtypes they were given in.
        master: float32 copies of the parameters of lower precision, in order; they take the updates.
        opt_state: the optimizer's state; frozen parameters have none.
        key: the run's random key; never changes.
        generation: int32 scalar, the number of updates made.
    """

    params: PyTree
    master: tuple[jax.Array, ...]
    opt_state: PyTree
    key: jax.Array
    generation: jax.Array


def check_state(state: Any) -> None:
    """Raises `TypeError` unless `state` is a `State`."""
    if not isinstance(state, State):
        raise TypeError(
            f"got {type(state).__name__} as the state; an eggroll.State is required, as in es.ask(state), "
            "es.tell(state, members, fitness) and es.step(state, fitness_fn, *args). Make one from parameters with "
            "es.init(params, key); tell and step return (state, metrics)."
        )
