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

from eggroll.engine.annotations import Numbers, PyTree
from eggroll.engine.checks import is_traced
from eggroll.strategy.population import Population
from eggroll.strategy.state import State, check_state

Auto: TypeAlias = Literal["auto"]
AUTO: Final = "auto"
CHOSEN = "sigma", "learning_rate"  # settings that may be that
# Of sigma: a learning rate that stays. Measured (`bench.tuning`): .2 to .5 of sigma is near the best, twice that where
# it falls to zero, whatever the size of the weights. Noise on activations tells so much more that the rate is as for
# backpropagation: this part of the weights' RMS.
RATE, RATE_BY_SIZE = 0.3, 0.03
MEMBERS = 64  # evaluated with each sigma that is tried, of a larger population
START, MOST = 0.05, 40  # of the weights' RMS; steps by two
MORE = 1.25  # times the worth, for four times the noise: less is the plain of what is as random already
STILL = 2.0**-12  # of that, as no noise at all: a sigma of zero would be refused


def size_of(params: PyTree) -> float:
    """The RMS of all parameters; 0.02 where they are zero."""
    leaves = [np.asarray(x, np.complex128).ravel() for x in jax.tree.leaves(jax.device_get(params))]
    return math.sqrt(np.mean(np.abs(np.concatenate(leaves)) ** 2)) or 0.02


def on_host(fitness: Numbers) -> np.ndarray:
    """In NumPy; of all processes."""
    here = not isinstance(fitness, jax.Array) or fitness.is_fully_addressable
    return np.asarray(fitness if here else multihost_utils.process_allgather(fitness, tiled=True), np.float64)


def worth(fitness: np.ndarray, still: np.ndarray, pairs: bool) -> float:
    """What noise of one scale is worth: the spread of fitness that it makes, less the fitness that it costs.

    Of a smooth fitness that is `a·σ − c·σ²`, largest where half of what noise tells is lost to curvature; of one that
    goes by steps, where members differ most.

    Args:
        fitness: `[N]`, or `[N, ...]` with a number per row, of members with noise.
        still: the same of members with next to none, whose spread is nobody's doing.
        pairs: whether members are antithetic pairs: half of a pair's difference tells, its mean costs.

    Returns:
        The worth in units of fitness; −inf if some fitness is not finite.

    Example:
        >>> worth(np.array([3.0, 1.0, 3.0, 1.0]), np.full(4, 2.5), pairs=True)
        0.5
    """
    if not np.isfinite(fitness).all():
        return -math.inf

    def spread(x: np.ndarray) -> Any:
        return np.square((x[::2] - x[1::2]) / 2) if pairs else np.square(x - x.mean(0))

    told = max(spread(fitness).mean() - spread(still).mean(), 0.0)
    return math.sqrt(told) - max(float(still.mean() - fitness.mean()), 0.0)


def widest(tried: Callable[[float], np.ndarray], start: float, pairs: bool) -> float:
    """The sigma whose noise is worth most, `start` times a power of two.

    Args:
        tried: sigma → fitness of members with noise of that scale, the same noise each time.
        start: a small one.
        pairs: whether members are antithetic pairs.

    Raises:
        ValueError: the fitness without noise is not finite, or noise of any scale changes nothing.

    Example:
        >>> noise = np.array([1.0, -1.0, 0.5, -0.5])
        >>> widest(lambda sigma: -((1 + sigma * noise) ** 2), start=0.01, pairs=True)
        1.28
    """
    still = tried(start * STILL)
    if not np.isfinite(still).all():
        raise ValueError(
            'got a fitness that is not finite without any noise, from which sigma="auto" cannot begin: check the '
            "parameters and the data, or give sigma as a number."
        )
    found: dict[int, float] = {}

    def of(step: int) -> float:
        if step not in found:
            found[step] = worth(tried(start * 2.0**step), still, pairs)
        return found[step]

    best = 0
    while of(best) == 0 and best < MOST:  # it goes by steps, and this noise crosses none
        best += 2
    while of(best) <= 0 and best > -MOST:  # more is lost than told
        best -= 2
    if of(best) <= 0:
        raise ValueError(
            f'got a fitness that noise of no scale from {start:.3g} on tells anything of, from which sigma="auto" '
            "cannot choose: does it depend on the parameters? Else give sigma as a number."
        )
    for way in (2, -2):
        while of(best + way) > MORE * of(best) and abs(best) < MOST:
            best += way
    around = sorted((best - 1, best, best + 1))
    enough = max(map(of, around)) / MORE**0.5
    return start * 2.0 ** next(step for step in around if of(step) >= enough)


def costing(tried: Callable[[float], np.ndarray], start: float, cost: float) -> float:
    """The sigma whose noise costs so much on average, where that grows with its square.

    Args:
        tried: sigma → cost of members with noise of that scale, the same noise each time.
        start: where to begin.
        cost: what noise is to cost, > 0.

    Raises:
        ValueError: noise of no scale costs so much.

    Example:
        >>> round(costing(lambda sigma: np.array([90.0, 110.0]) * sigma**2, start=1.0, cost=0.25), 3)
        0.05
    """
    sigma = start
    for _ in range(12):
        found = float(tried(sigma).mean())
        step = math.sqrt(cost / found) if 0 < found < math.inf else 16.0 if found <= 0 else 1 / 16
        sigma *= min(max(step, 1 / 16), 16)
        if 0.9 < step < 1.1:
            return float(f"{sigma:.3g}")
    raise ValueError(f"got a function that noise of no scale changes by {cost:.3g}; give sigma as a number.")


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

    settings: Population
    population: int
    groups: int

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
        rate: float | None = None,
    ) -> None:
        """Chooses the settings that are `"auto"`, once; `step` and `fit` do it by themselves.

        Sigma is the one, of powers of two, at which the spread of fitness that noise makes, less the fitness that it
        costs, is largest; the learning rate is 0.3 of sigma. With noise on activations, which tells as much as a
        gradient, it is 0.03 of the weights' RMS.

        Args:
            state: of generation 0.
            evaluate: `evaluate(members)` → fitness `[N]`, or `[N, ...]` with a number per row; asked some 6 to 12
                times, with the same noise at different scales.
            members: how many there are each time, at most the population, in one group. Default None: all.
            cost: for an `evaluate` that returns what noise does to each member in numbers of its own, such as the
                divergence of its outputs from those without noise: what it is to be on average. Default None: fitness.
            rate: the learning rate, in units of sigma. Default None: as above.

        Raises:
            ValueError: a state of a later generation, or a fitness that tells nothing.

        Example:
            >>> import jax, jax.numpy as jnp, eggroll
            >>> es = eggroll.ES(population=64, sigma="auto", learning_rate="auto")
            >>> state = es.init({"w": jnp.ones(3)}, jax.random.key(0))
            >>> es.choose(state, lambda members: members.apply(lambda p: -jnp.sum(p["w"] ** 2)))
            >>> es.undecided, es.sigma
            ((), 0.4)
        """
        check_state(state)
        self._choose(state, evaluate, members, type(self).ask, cost, rate)

    def _choose(
        self,
        state: State,
        evaluate: Callable[[Any], Numbers],
        members: int | None,
        ask: Callable[..., Any],
        cost: float | None = None,
        rate: float | None = None,
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
        who = replace(self.settings, size=size, groups=1 if members else self.groups)
        tried = [0.0]
        changed = {"settings": who, "population": size, "groups": who.groups}
        trial = self._with(**changed, sigma=lambda _: jnp.float32(tried[0]))

        def fitness(sigma: float) -> np.ndarray:
            tried[0] = sigma
            return on_host(evaluate(ask(trial, state)))

        start = START * size_of(state.params)
        if "sigma" not in self.undecided:
            sigma = float(self._sigma(state))
        else:
            sigma = widest(fitness, start, who.antithetic) if cost is None else costing(fitness, start, cost)
        by_size = rate is None and who.noise == "activations"
        chosen = RATE_BY_SIZE * size_of(state.params) if by_size else (RATE if rate is None else rate) * sigma
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
        for each in ("cache", "_plans"):
            vars(self).pop(each, None)


def _short(value: Any) -> str:  # a function by its name: its address says nothing
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__) if callable(value) else repr(value)
