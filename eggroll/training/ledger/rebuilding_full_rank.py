"""The update of full-rank ES from a ledger's record: what `FullRankES.tell` does, by the same compiled calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.strategy.full_rank_generation import FullRankGeneration
from eggroll.strategy.noise.keys import generation_key
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.schedules import rate_at
from eggroll.strategy.state import State
from eggroll.training.ledger.format import Generation as Record
from eggroll.training.ledger.settings import population_of
from eggroll.training.optimizers import from_json


def full_rank_update(
    content: Mapping[str, Any], plan: Plan
) -> Callable[[State, Record], tuple[State, dict[str, jax.Array]]]:
    """`(state, record)` → `(state, norms)`.

    Args:
        content: of the ledger's settings.
        plan: that they have.
    """
    population, noise_reuse, constant = population_of(content), content["noise_reuse"], content["sigma"]
    learning_rate = from_json(content["learning_rate"])

    def update(state: State, record: Record) -> tuple[State, dict[str, jax.Array]]:
        sigma = float(record.sigma) if constant is None else constant
        key = generation_key(state.key, state.generation, noise_reuse)
        generation = FullRankGeneration(population, plan, key, sigma)
        rate = rate_at(learning_rate, sigma, state.generation)
        return generation.moved(state, jnp.asarray(record.weights), rate, True)

    return update
