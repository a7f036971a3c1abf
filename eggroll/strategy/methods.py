"""Strategies and their settings by name, and what rewards start them with. Without JAX: a refusal does not wait."""

from __future__ import annotations

import importlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Method:
    """A strategy that ledgers, configurations and commands know by its name.

    Attributes:
        name: unique; ledgers hold it for ever.
        where: `"module:Class"` of the strategy, loaded when it is needed.
        population: default of `eggroll finetune`.
        sigma: likewise.
        rate: default learning rate there, of `(sigma, population, optimizer's name)`.
        pairs: whether its members are antithetic pairs there, each of which belongs to one group.
        grouped: whether each prompt has a group of members of its own there, unless groups are given.
        takes: which of the settings `"rank"`, `"optimizer"`, `"chunk"` and `"noise"` say something to it.
        lacks: why the others say nothing, for messages.
    """

    name: str
    where: str
    population: int
    sigma: float
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
            population=256,
            sigma=2e-3,
            rate=_low_rank_rate,
            pairs=True,
            grouped=True,
            takes=frozenset({"rank", "optimizer", "chunk", "noise"}),
        ),
        Method(
            "full-rank",
            "eggroll.strategy.full_rank:FullRankES",
            population=30,
            sigma=1e-3,
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


class Configured:
    """What is made of settings that it can be asked for by their names."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Every setting that decides numbers, by its name in `__init__`: what runs compare and ledgers keep."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "plan" and name in vars(self) and self.takes(name):
            raise AttributeError(
                f"got {name}={_short(value)} for a strategy that is compiled as it was made; make another one with it, "
                f"{type(self).__name__}({name}=...), which goes on with the same state. Sigma may be a schedule."
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """Its class with population, sigma, rank, and what else is not as it would be by default."""
        default = {name: each.default for name, each in self.parameters().items()}
        found = {name: value for name, value in self.options().items() if name in default and name != "optimizer"}
        kept = [n for n, value in found.items() if n in ("population", "sigma", "rank") or value != default[n]]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(found[name])}' for name in kept)})"

    @classmethod
    def parameters(cls) -> Mapping[str, inspect.Parameter]:
        """Its settings, by the names that `__init__` has for them."""
        return inspect.signature(cls).parameters

    @classmethod
    def takes(cls, name: str) -> bool:
        """Whether there is a setting of that name."""
        return name in cls.parameters()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """A strategy of those settings that it takes."""
        return cls(**{name: value for name, value in options.items() if cls.takes(name)})


def _short(value: Any) -> str:  # a function by its name: its address says nothing
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__) if callable(value) else repr(value)
