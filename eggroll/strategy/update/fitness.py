"""Fitness: its mean and spread, the numbers that metrics report, and what is said where members do not differ.

Statistics are safe against rounding, overflow and what does not count. All that is asked of the same numbers comes from
one `lax.reduce` with several operands: on CPUs, XLA turns every small single reduction into three kernels, which
together took a fifth of a step's compile time. There `x` is `[..., N]`, `valid` is `[..., N]` bool, `x` is 0 where
`valid` is false, and results keep the last axis with length 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from eggroll.engine.checks import is_traced
from eggroll.engine.lowrank import accumulator_dtype
from eggroll.engine.user_code import warn_user


@jax.custom_jvp
def undifferentiated(arrays: list[Any]) -> list[Any]:
    """The arrays; whoever takes a derivative through them is refused."""
    return arrays


@undifferentiated.defjvp
def _refused(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "got a derivative (jax.grad, jax.jvp, jax.linearize) of what members of a population return: evolution "
        "strategies take none, and it would not be that of the function. Differentiate the function itself, "
        "jax.grad(loss_fn)(params, *args), or use the gradient that eggroll.value_and_grad returns."
    )


class Summary(NamedTuple):
    """What one pass over the valid numbers tells.

    Attributes:
        count: how many there are, int32.
        low: the lowest; infinity where there are none.
        high: the highest; −infinity where there are none.
        mean: between the two, with the rounding error of a sum; 0 where there are none.
    """

    count: jax.Array
    low: jax.Array
    high: jax.Array
    mean: jax.Array

    def scale(self) -> jax.Array:
        """The largest magnitude, or 1 where that is 0: a divisor that keeps squares finite."""
        largest = jnp.where(self.count > 0, jnp.maximum(-self.low, self.high), 0)
        # XLA divides an array by a scalar by multiplying with its reciprocal, and flushes a subnormal one to 0.
        return jnp.where(largest > 0, jnp.minimum(largest, jnp.finfo(self.low.dtype).max / 8), 1)


def summarize(x: jax.Array, valid: jax.Array) -> Summary:
    """One pass over the valid numbers along the last axis."""
    infinity, zero = np.array(np.inf, x.dtype), np.array(0, x.dtype)
    share = np.array(2.0 ** -x.shape[-1].bit_length(), x.dtype)  # of every number, so that their sum stays finite
    operands = valid.astype(jnp.int32), jnp.where(valid, x, infinity), jnp.where(valid, x, -infinity), x, x * share
    initial = np.int32(0), infinity, -infinity, zero, zero
    found = lax.reduce(operands, initial, _together, (x.ndim - 1,))
    count, low, high, total, shared = (each[..., None] for each in found)
    some = jnp.maximum(count, 1).astype(x.dtype)
    mean = jnp.where(jnp.isfinite(total), total / some, shared / some / share)
    # A rounded mean can leave the range of its data; held inside, the mean of a constant is that constant.
    return Summary(count, low, high, jnp.where(count > 0, jnp.clip(mean, low, high), 0))


class Spread(NamedTuple):
    """Where the valid numbers lie, and how far apart.

    Attributes:
        summary: of the numbers.
        centred: every number's distance from the mean, in units of `unit`; 0 where it is not valid.
        deviation: the population standard deviation, in units of `unit`; 0 where nothing is valid.
        unit: a power of two in which no difference overflows or is flushed to zero, and no reciprocal is.
    """

    summary: Summary
    centred: jax.Array
    deviation: jax.Array
    unit: jax.Array


def spread(x: jax.Array, valid: jax.Array) -> Spread:
    """Three passes over the valid numbers along the last axis."""
    first = summarize(x, valid)
    small = first.scale() < np.array(2.0**-64, x.dtype)
    units = jnp.where(small, np.array(2.0**40, x.dtype), np.array(0.125, x.dtype))  # of what is small XLA drops bits
    once = jnp.where(valid, x * units - first.mean * units, 0)
    second = summarize(once, valid)
    centred = jnp.where(valid, once - second.mean, 0)  # without the rounding error of the first mean
    scale = second.scale()
    deviation = jnp.sqrt(summarize((centred / scale) ** 2, valid).mean) * scale
    return Spread(first._replace(mean=first.mean + second.mean / units), centred, deviation, 1 / units)


def spreads(fitness: jax.Array, valid: jax.Array) -> tuple[Spread, Spread]:
    """The spread of all finite fitness, which metrics report, and of that which counts: both from one set of kernels.

    Metrics and shaping ask for them each for itself; compiled together they are computed once.

    Args:
        fitness: `[N]`.
        valid: `[N]` bool, members that count: finite, and with pairs the other one, too.
    """
    (fitness,) = undifferentiated([fitness])  # whatever it comes from: arguments, what a function captures, the host
    masks = jnp.stack([jnp.isfinite(fitness), valid])
    both = spread(jnp.where(masks, fitness, 0), masks)
    finite, counted = (jax.tree.map(lambda x, i=i: x[i], both) for i in range(2))
    return finite, counted


def centre(x: jax.Array, valid: jax.Array) -> jax.Array:
    """`x` less the mean of the valid numbers; the second pass removes the rounding error of the first."""
    for _ in range(2):
        x = jnp.where(valid, x - summarize(x, valid).mean, 0)
    return x


def _together(a: tuple, b: tuple) -> tuple:
    """The summary of two sets together."""
    return a[0] + b[0], lax.min(a[1], b[1]), lax.max(a[2], b[2]), a[3] + b[3], a[4] + b[4]


def as_float(fitness: Any) -> Any:
    """Fitness as float32 or wider: counts can be averaged, and statistics are not rounded to half precision."""
    floating = jnp.issubdtype(fitness.dtype, jnp.floating)
    return fitness.astype(accumulator_dtype(fitness.dtype) if floating else jnp.float32)


def of_members(fitness: jax.Array) -> jax.Array:
    """`[N]`, one fitness for each member: the mean of its finite ones where it has several, NaN where it has none."""
    if fitness.ndim == 1:
        return fitness
    flat = fitness.reshape(len(fitness), -1)
    finite = jnp.isfinite(flat)
    count = finite.sum(1)
    mean = jnp.where(finite, flat, 0).sum(1) / jnp.maximum(count, 1).astype(flat.dtype)
    return jnp.where(count > 0, mean, jnp.nan)


def summary(fitness: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    """Mean, best, worst and standard deviation over finite fitness, members dropped, whether the others are equal.

    Args:
        fitness: `[N]`; or `[N, *losses]`, of which members' means are spoken of.
        valid: `[N]` bool, members that count in the update.

    Returns:
        Scalars by name; NaN where nothing is finite.
    """
    each, fitness = fitness, of_members(fitness)
    found, counted = spreads(fitness, valid)
    values = {
        "fitness_mean": found.summary.mean,
        "fitness_best": found.summary.high,
        "fitness_worst": found.summary.low,
        "fitness_std": found.deviation * found.unit,
    }
    some = found.summary.count > 0
    return {name: jnp.where(some, value, jnp.nan)[0] for name, value in values.items()} | {
        "nonfinite": fitness.size - counted.summary.count[0],
        "equal_fitness": (counted.summary.low == counted.summary.high)[0] & _equal(each, valid),
    }


def _equal(each: jax.Array, valid: jax.Array) -> jax.Array | bool:
    """Whether valid members are equal in every one of several numbers."""
    if each.ndim == 1:
        return True
    flat = each.reshape(len(each), -1)
    first = jnp.take(flat, jnp.argmax(valid), 0)
    return jnp.where(valid[:, None] & jnp.isfinite(flat) & jnp.isfinite(first), flat == first, True).all()


def raise_if_lost(metrics: dict[str, Any], population: int) -> None:
    """Raises where a generation's metrics tell that nothing was updated; not under a trace.

    Raises:
        ValueError: sigma was not > 0.
        FloatingPointError: no fitness was finite.
    """
    if is_traced(metrics):
        return
    if not metrics["sigma"] > 0:
        raise ValueError(
            f"got sigma={float(metrics['sigma'])} from the schedule at generation {int(metrics['generation'])}; a "
            "number > 0 is required in every generation. Let the schedule end above zero."
        )
    if metrics["nonfinite"] == population:
        raise nothing_finite("fitness", population)


def nothing_finite(what: str, population: int) -> FloatingPointError:
    """The error for a generation of which nothing can be learned."""
    return FloatingPointError(
        f"got no finite {what} among {population} members (with antithetic pairs, a pair counts only when both are "
        f"finite): nothing was updated. Look at the {what} of the unperturbed parameters; if it is finite, lower sigma."
    )


def mean_loss(fitness: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The mean of the finite losses `−fitness`, in the loss's own dtype if that is floating point."""
    finite = jnp.isfinite(fitness)
    total = -jnp.where(finite, fitness, 0).sum()
    mean = total / finite.sum().astype(total.dtype)
    return mean.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else mean


class Standstill:
    """Says once where members did not differ for several generations in a row: such a run ends as it began."""

    ROW = 5

    def __init__(self, population: int) -> None:
        self._population, self._row, self._seen, self._said = population, 0, -1, False

    def watch(self, metrics: dict[str, Any]) -> None:
        """Takes note of a generation's metrics, of each once; not under a trace.

        There a callback would cost a small step a quarter of its time, and metrics that notice when they come out of
        it (a class of dictionaries) are another tree than a dictionary to `jax.lax.scan` and `jax.tree.map`.
        """
        if self._said or is_traced(metrics) or not metrics.keys() >= {"generation", "equal_fitness"}:
            return
        generation, norm = int(metrics["generation"]), float(metrics["gradient_norm"])
        if generation == self._seen:
            return
        # Parameters stand still where pairs or groups are equal among themselves, too.
        self._row, self._seen = self._row + 1 if norm == 0 else 0, generation
        if self._row == self.ROW:
            self._said = True
            equal, lost, mean = (metrics[name] for name in ("equal_fitness", "nonfinite", "fitness_mean"))
            warn_user(_nothing_to_follow(equal, lost, mean, self._population, self.ROW), UserWarning)


def _nothing_to_follow(equal: Any, lost: Any, mean: Any, population: int, row: int) -> str:
    value = float(mean)
    if not equal:
        what = f"a gradient of zero from the fitness of {population} members"
        why = "both members of each pair (or all of each group) are equally good, or the shaping gives no weights"
    else:
        others = f" but the {int(lost)} whose fitness is not finite" if lost else ""
        what = f"equal fitness ({value:.6g}) from all {population} members{others}"
        apart = abs(float(np.spacing(np.float32(value))))
        why = (
            "the fitness does not depend on the parameters, or goes by steps (a count, an accuracy, a clipped reward) "
            "that noise of this sigma does not cross: raise sigma or take a smoother fitness; or it was computed in "
            f"float32, which near {value:.3g} knows steps of {apart:.2g} alone: subtract what all scores have in "
            "common; or every member already has the best score that there is"
        )
    return (
        f"got {what} in {row} generations in a row: nothing is learned. Likely {why}. This is said once; "
        "metrics['equal_fitness'] tells it of every generation."
    )
