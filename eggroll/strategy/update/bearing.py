"""How much noise a fitness bears, and how large parameters are: what settings that choose themselves go by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.plan.rules import FrozenRule, Rules, match_rules

MOST = 40  # steps by two
MORE = 1.25  # times the worth, for four times the noise: less is the plain of what is as random already
STILL = 2.0**-12  # of that, as no noise at all: a sigma of zero would be refused


@jax.jit
def _sized(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest size of a number, and the mean square in units of it: no copy is made, and no square overflows."""
    sizes = jnp.abs(x)
    sizes = sizes.astype(accumulator_dtype(sizes.dtype))
    most = sizes.max()
    return most, jnp.square(sizes / jnp.where(most > 0, most, 1)).mean()


def size_of(params: PyTree, rules: Rules = ()) -> float:
    """The RMS of all parameters that are to move, to three digits; 0.02 where they are zero."""
    chosen = match_rules(rules, leaf_paths(params))
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    moving = [x for path, x in leaves if x.size and not isinstance(chosen.get(path), FrozenRule)]
    squares = [float(mean) * (float(most) ** 2) * x.size for x in moving for most, mean in [_sized(x)]]
    size = math.sqrt(sum(squares) / max(sum(x.size for x in moving), 1))
    return float(f"{size:.3g}") if size > 0 else 0.02  # alike on all devices, however they sum


def worth(fitness: np.ndarray, still: np.ndarray, pairs: bool, groups: int = 1) -> float:
    """What noise of one scale is worth: the spread of fitness that it makes, less the fitness that it costs.

    Of a smooth fitness that is `a·σ − c·σ²`, largest where half of what noise tells is lost to curvature; of one that
    goes by steps, where members differ most.

    Args:
        fitness: `[N]`, or `[N, ...]` with a number per row, of members with noise.
        still: the same of members with next to none, whose spread is nobody's doing.
        pairs: whether members are antithetic pairs: half of a pair's difference tells, its mean costs.
        groups: of members; others tell what differs within one.

    Returns:
        The worth in units of fitness; −inf if some fitness is not finite.

    Example:
        >>> worth(np.array([3.0, 1.0, 3.0, 1.0]), np.full(4, 2.5), pairs=True)
        0.5
    """
    if not np.isfinite(fitness).all():
        return -math.inf

    def spread(x: np.ndarray) -> Any:
        own = x.reshape(groups, -1, *x.shape[1:])
        return np.square((x[::2] - x[1::2]) / 2) if pairs else np.square(own - own.mean(1, keepdims=True))

    told = max(spread(fitness).mean() - spread(still).mean(), 0.0)
    return math.sqrt(told) - max(float(still.mean() - fitness.mean()), 0.0)


def widest(tried: Callable[[float], np.ndarray], start: float, pairs: bool, groups: int = 1) -> float:
    """The sigma whose noise is worth most, `start` times a power of two.

    Args:
        tried: sigma → fitness of members with noise of that scale, the same noise each time.
        start: a small one.
        pairs: whether members are antithetic pairs.
        groups: of members.

    Raises:
        ValueError: the fitness without noise is not finite, noise of any scale changes nothing, or more without end.

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
            found[step] = worth(tried(start * 2.0**step), still, pairs, groups)
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
    if abs(best) >= MOST:
        raise ValueError(
            f"got a fitness of which noise tells more the {'larger' if best > 0 else 'smaller'} it is, without end (up "
            f'to a sigma of {start * 2.0**best:.3g}), from which sigma="auto" cannot choose: give sigma as a number.'
        )
    return start * 2.0 ** max((best - 1, best, best + 1), key=of)


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
