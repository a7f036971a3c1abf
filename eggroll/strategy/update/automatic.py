"""Sigma and learning rate that choose themselves: how much noise a fitness bears, found before the first generation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from eggroll.engine.annotations import Numbers, PyTree
from eggroll.engine.checks import is_traced
from eggroll.strategy.methods import Configured
from eggroll.strategy.population import Population
from eggroll.strategy.state import State, check_state

Auto: TypeAlias = Literal["auto"]
AUTO: Final = "auto"
CHOSEN = "sigma", "learning_rate"  # settings that may be that
# Of sigma: a learning rate that stays. Measured (`bench.tuning`): .2 to .5 of sigma is near the best, twice that where
# it falls to zero, whatever the size of the weights.
RATE = 0.3
MEMBERS = 64  # evaluated with each sigma that is tried, of a larger population
START, LEAST, MOST = 0.05, 1e-3, 40  # of the weights' RMS; where that is zero; steps by two
STILL = 2.0**-12  # of that, as no noise at all: a sigma of zero would be refused


def started_from(params: PyTree) -> float:
    """A sigma that is surely small, in units of the parameters."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(jax.device_get(params))]
    size = math.sqrt(np.mean(np.square(np.concatenate(leaves)))) if leaves else 0.0
    return START * size or LEAST


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
        >>> worth(np.array([1.5, 0.5, 2.5, -0.5]), np.ones(4), pairs=True)
        1.1180339887498949
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
        0.64
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
        while of(best + way) > of(best) and abs(best) < MOST:
            best += way
    return start * 2.0 ** max((best - 1, best, best + 1), key=of)


class Automatic(Configured):
    """A strategy whose sigma and learning rate may be `"auto"`."""

    settings: Population
    population: int

    @abstractmethod
    def ask(self, state: State) -> Any:
        """Members; see `Strategy.ask`."""

    @property
    def undecided(self) -> tuple[str, ...]:
        """The settings that are `"auto"` and not chosen yet."""
        return tuple(name for name in CHOSEN if getattr(self, name, None) == AUTO)

    def choose(self, state: State, evaluate: Callable[[Any], Numbers], *, members: int | None = None) -> None:
        """Chooses the settings that are `"auto"`, once; `step` and `fit` do it by themselves.

        Sigma is the one, of powers of two, at which the spread of fitness that noise makes, less the fitness that it
        costs, is largest; the learning rate is 0.3 of it. With noise on activations, the rate goes by noise on weights.

        Args:
            state: of generation 0.
            evaluate: `evaluate(members)` → fitness `[N]`, or `[N, ...]` with a number per row; asked some 6 to 12
                times, with the same noise at different scales.
            members: how many there are each time, at most the population. Default None: all.

        Raises:
            ValueError: a state of a later generation, or a fitness that tells nothing.

        Example:
            >>> import jax, jax.numpy as jnp, eggroll
            >>> es = eggroll.ES(population=64, sigma="auto", learning_rate="auto")
            >>> state = es.init({"w": jnp.ones(3)}, jax.random.key(0))
            >>> es.choose(state, lambda members: members.apply(lambda p: -jnp.sum(p["w"] ** 2)))
            >>> es.undecided, es.sigma
            ((), 0.8)
        """
        check_state(state)
        self._choose(state, evaluate, members or self.population, type(self).ask)

    def _choose(self, state: State, evaluate: Callable[[Any], Numbers], size: int, ask: Callable[..., Any]) -> None:
        if not self.undecided:
            return
        if is_traced(state) or state.generation:
            raise ValueError(
                f"got {' and '.join(self.undecided)} still 'auto' under jit, or with a state that has been moved; they "
                "are chosen before the first generation: call es.step, or es.choose(state, evaluate), outside jit with "
                "the state of es.init. To go on with a run, give the numbers that it had: its metrics have sigma."
            )

        def found(noise: Any) -> float:
            who, tried = replace(self.settings, size=min(size, self.population), noise=noise), [0.0]
            trial = copy(self)
            trial._take({"settings": who, "population": who.size, "sigma": lambda _: jnp.float32(tried[0])})

            def fitness(sigma: float) -> np.ndarray:
                tried[0] = sigma
                return on_host(evaluate(ask(trial, state)))

            return widest(fitness, started_from(state.params), who.antithetic)

        sigma = found(self.settings.noise)
        rate = RATE * (sigma if self.settings.noise == "weights" else found("weights"))
        chosen = {"sigma": sigma, "learning_rate": rate}
        self._take({name: chosen[name] for name in self.undecided})

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Settings that are other ones than those that it was made with, before anything is compiled for it."""
        vars(self).update(settings)
        for each in ("cache", "_plans"):
            vars(self).pop(each, None)
