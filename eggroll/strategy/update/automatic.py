"""Sigma and learning rate that choose themselves: how much noise a fitness bears, found before the first generation."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Final, Literal, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from eggroll.engine.annotations import Numbers
from eggroll.engine.checks import is_traced
from eggroll.strategy.plan.rules import Rules
from eggroll.strategy.population import Population
from eggroll.strategy.state import State, check_state
from eggroll.strategy.update.bearing import costing, size_of, widest
from eggroll.strategy.update.told import check_fitness

Auto: TypeAlias = Literal["auto"]
AUTO: Final = "auto"
CHOSEN = "sigma", "learning_rate"  # settings that may be that
COMPILED = "cache", "_plans"  # what a strategy makes of its settings when it is used: no copy has it
# Of sigma: a learning rate that stays. Measured (bench.tuning): .3 to .5 of sigma is near the best, twice that where it
# falls to zero, whatever the size of the weights. Noise on activations tells so much more that the rate is as for
# backpropagation: this part of the weights' RMS.
RATE, RATE_BY_SIZE = 0.4, 0.03
MEMBERS = 64  # evaluated with each sigma that is tried, of a larger population
START = 0.05  # of the weights' RMS: the sigma that is tried first


def on_host(fitness: Numbers) -> np.ndarray:
    """In NumPy; of all processes."""
    here = not isinstance(fitness, jax.Array) or fitness.is_fully_addressable
    return np.asarray(fitness if here else multihost_utils.process_allgather(fitness, tiled=True), np.float64)


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


class Automatic(Configured):
    """A strategy whose sigma and learning rate may be `"auto"`."""

    _is_trial = False  # whether it tries settings for another one
    settings: Population
    population: int
    groups: int
    rules: Rules

    @abstractmethod
    def ask(self, state: State) -> Any:
        """Members; see `Strategy.ask`."""

    @abstractmethod
    def _sigma(self, state: State) -> Any:
        """Of the state's generation."""

    @property
    def undecided(self) -> tuple[str, ...]:
        """The settings that are `"auto"` and not chosen yet."""
        return tuple(name for name in CHOSEN if getattr(self, name, None) == AUTO)

    def choose(
        self,
        state: State,
        evaluate: Callable[[Any], Numbers],
        *,
        members: int | None = None,
        cost: float | None = None,
        rate: Any = None,
    ) -> None:
        """Chooses the settings that are `"auto"`, once; `step` and `fit` do it by themselves.

        Sigma is the one, of powers of two, at which the spread of fitness that noise makes, less the fitness that it
        costs, is largest; the learning rate is 0.4 of sigma. With noise on activations, which tells as much as a
        gradient, it is 0.03 of the weights' RMS.

        Args:
            state: of generation 0.
            evaluate: `evaluate(members)` → fitness `[N]`, or `[N, ...]` with a number per row; asked some 6 to 12
                times, with the same noise at different scales.
            members: how many there are each time, at most the population, in one group. Default None: all.
            cost: for an `evaluate` that returns what noise does to each member in numbers of its own, such as the
                divergence of its outputs from those without noise: what it is to be on average. Default None: fitness.
            rate: the learning rate, in units of sigma: a number, or a schedule of `eggroll.training.schedule`. Default
                None: as above.

        Raises:
            TypeError: what is evaluated is not real numbers.
            ValueError: a state of a later generation, a fitness that tells nothing or is not one per member, or a cost
                or a rate that is not > 0.

        Example:
            >>> import jax, jax.numpy as jnp, eggroll
            >>> es = eggroll.ES(population=64, sigma="auto", learning_rate="auto")
            >>> state = es.init({"w": jnp.ones(3)}, jax.random.key(0))
            >>> es.choose(state, lambda members: members.apply(lambda p: -jnp.sum(p["w"] ** 2)))
            >>> es.undecided, es.sigma
            ((), 0.8)
        """
        check_state(state)
        first: Any = rate(0) if callable(rate) else rate
        for name, value in (("cost", cost), ("rate", first)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"got {name}={value}; a finite number > 0 is required, or None.")
        self._choose(state, evaluate, members, type(self).ask, cost, rate)

    def _choose(
        self,
        state: State,
        evaluate: Callable[[Any], Numbers],
        members: int | None,
        ask: Callable[..., Any],
        cost: float | None = None,
        rate: Any = None,
    ) -> None:
        if not self.undecided:
            return
        if is_traced(state) or state.generation:
            raise ValueError(
                f"got {' and '.join(self.undecided)} still 'auto' under jit, or with a state that has been moved; they "
                "are chosen before the first generation: call es.step, or es.choose(state, evaluate), outside jit with "
                "the state of es.init. To go on with a run, give the numbers that it had: its metrics have sigma."
            )

        size = self.population if members is None else min(members, self.population)
        who = replace(self.settings, size=size, groups=self.groups if members is None else 1)
        tried = [0.0]
        changed = {"settings": who, "population": size, "groups": who.groups, "_is_trial": True}
        trial = self._with(**changed, sigma=lambda _: jnp.float32(tried[0]))

        def fitness(sigma: float) -> np.ndarray:
            tried[0] = sigma
            return on_host(check_fitness(evaluate(ask(trial, state)), size, rows=True))

        weight = size_of(state.params, self.rules)
        start = START * weight
        if "sigma" not in self.undecided:
            sigma = float(self._sigma(state))
        else:
            sigma = (
                widest(fitness, start, who.antithetic, who.groups) if cost is None else costing(fitness, start, cost)
            )
        by_size = rate is None and who.noise == "activations"
        chosen = RATE_BY_SIZE * weight if by_size else (RATE if rate is None else rate) * sigma  # or a schedule times
        self._take({name: {"sigma": sigma, "learning_rate": chosen}[name] for name in self.undecided})

    def settled(self) -> Self:
        """Itself, or a copy with a small sigma, where none is chosen: for what does not depend on it."""
        return self._with(sigma=1e-3) if "sigma" in self.undecided else self

    def _with(self, **settings: Any) -> Self:
        other = copy(self)
        other._take(settings)
        return other

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Settings that are other ones than those that it was made with, before anything is compiled for it."""
        vars(self).update(settings)
        for each in COMPILED:
            vars(self).pop(each, None)


def _short(value: Any) -> str:  # a function by its name: its address says nothing
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__) if callable(value) else repr(value)
