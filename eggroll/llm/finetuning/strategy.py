"""The evolution strategy of a run, and how far its noise may move a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Generator
from eggroll.llm.answers.generation import generate_plain
from eggroll.llm.answers.prompts import Prompts
from eggroll.llm.answers.writing import UNDER_NOISE
from eggroll.llm.finetuning.settings import FinetuneSettings
from eggroll.llm.finetuning.statistics import divergences
from eggroll.llm.model.lora import FROZEN
from eggroll.strategy.methods import method_named
from eggroll.strategy.protocol import Strategy
from eggroll.strategy.state import State
from eggroll.training.optimizers import NamedSchedule, named, schedule
from eggroll.training.options import SettingsError

COST = 0.2  # nats a token by which noise moves a model where sigma is "auto": .1 to .3 learned, 1.3 was too much
# Of an update, in units of the noise: 1/6 was too little to begin with, 2/3 learned, 2.7 was too much, and half of it
# after ten generations undid what they had learned. When a run ends is not known, so the size falls with the root.
SIZE = 0.8
FALLING = schedule("inverse_sqrt_schedule", init_value=1.0)
TRIED, ASKED = 8, 4  # members and prompts by which both are chosen


def strategy(settings: FinetuneSettings) -> Strategy:
    """The evolution strategy of a run."""
    made = method_named(settings.method).strategy()
    if settings.lora is not None and not made.takes("rules"):
        raise SettingsError(
            f"got lora={settings.lora} for method={settings.method!r}, which cannot freeze the base, "
            "as it takes no rules. Leave it out, or take another method."
        )
    options: dict[str, Any] = {"population": settings.population, "sigma": settings.sigma, "groups": settings.parts}
    options |= {"rank": settings.rank, "fallback": "error"}
    options |= {"rules": [(FROZEN, "frozen")]} if settings.lora is not None else {}
    options |= {"shaping": "group" if settings.parts > 1 else "zscore"} | UNDER_NOISE[settings.noise]
    if isinstance(settings.rate, str) or not made.takes("optimizer"):
        options["learning_rate"] = settings.rate
    options["optimizer"] = _optimizer(settings)
    try:
        return made.from_options(options)
    except ValueError as why:
        raise SettingsError(str(why)) from why


def _optimizer(settings: FinetuneSettings) -> Any:
    """The optimizer, or what makes it of the learning rate that is chosen."""

    def of(rate: Any) -> Any:  # of an update by Adam; where rewards tell nothing, one by "sgd" is η/(σ²·√N) of σ
        falling = rate if isinstance(rate, NamedSchedule) else FALLING * rate
        sigma = float(falling(0)) / SIZE
        own = falling if settings.optimizer == "adam" else falling * (sigma * settings.population**0.5)
        return named(settings.optimizer, learning_rate=own)

    return of if isinstance(settings.rate, str) else named(settings.optimizer, learning_rate=settings.rate)


def choose(
    es: Strategy, state: State, params: PyTree, greedy: Generator, prompts: Prompts, budget: float | None
) -> None:
    """Has sigma and the learning rate chosen by how far noise moves the model on greedy answers of its own.

    Args:
        es: the strategy.
        state: of generation 0.
        params: of the model.
        greedy: its generator.
        prompts: some.
        budget: bytes that answering may take; see `eggroll.llm.generate`.
    """
    answers = generate_plain(params, greedy, prompts, budget=budget)

    def moved(member: PyTree, *given: Any) -> jax.Array:
        return divergences(greedy.graphdef)(member, *given).sum() / given[-1].sum().astype(jnp.float32)

    given = params, *map(jnp.asarray, (*prompts, *answers))
    rate = FALLING * SIZE if es.settings.noise == "weights" else None
    es.choose(state, lambda members: members.apply(moved, *given), members=TRIED, cost=COST, rate=rate)
