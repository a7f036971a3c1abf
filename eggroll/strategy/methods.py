"""Strategies by name: where each lies, and what it is started with on rewards. Without JAX: a refusal does not wait."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A strategy that ledgers, configurations and commands know by its name.

    Attributes:
        name: unique; ledgers hold it for ever.
        where: `"module:Class"` of the strategy, loaded when it is needed.
        population: default of `eggroll finetune`.
        rate: the learning rate of runs that were begun without one, of `(sigma, population, optimizer's name)`.
        pairs: whether its members are antithetic pairs there, each of which belongs to one group.
        grouped: whether each prompt has a group of members of its own there, unless groups are given.
        takes: which of the settings `"rank"`, `"optimizer"`, `"chunk"` and `"noise"` say something to it.
        lacks: why the others say nothing, for messages.
    """

    name: str
    where: str
    population: int
    rate: Callable[[float, int, str], float]
    pairs: bool = False
    grouped: bool = False
    takes: frozenset[str] = frozenset()
    lacks: str = "settings of its own"

    def strategy(self) -> Any:
        """The class, a subclass of `eggroll.strategy.protocol.Strategy`."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(module), name)


def _low_rank_rate(sigma: float, population: int, optimizer: str) -> float:
    """An update of a sixth of the noise in size; where rewards tell nothing, one of `"sgd"` is `η/(σ²·√N)` of it."""
    return sigma / 20 if optimizer == "adam" else sigma**2 * population**0.5 / 6


METHODS = {
    method.name: method
    for method in (
        Method(
            "eggroll",
            "eggroll.strategy.es:ES",
            population=32,
            rate=_low_rank_rate,
            pairs=True,
            grouped=True,
            takes=frozenset({"rank", "optimizer", "chunk", "noise"}),
        ),
        Method(
            "full-rank",
            "eggroll.strategy.full_rank:FullRankES",
            population=30,
            rate=lambda sigma, population, optimizer: sigma / 2,
            lacks="dense noise, its own update, and one member at a time",
        ),
    )
}


def method_named(name: str) -> Method:
    """The method; raises ValueError for a name that no strategy has.

    Example:
        >>> method_named("full-rank").population
        30
    """
    if name not in METHODS:
        raise ValueError(f"got method={name!r}; one of {', '.join(map(repr, METHODS))} is required.")
    return METHODS[name]
