"""A network on the digits, by three methods: test accuracy after every step against forward passes of a minibatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import eggroll

LEVEL, TUNING_SEED, BATCH, TRAINING = 0.95, 1000, 128, 1500

Curve = list[tuple[int, float]]  # evaluations so far, test accuracy


@dataclass(frozen=True)
class Setting:
    """How a network learns: `"activations"`, `"weights"` or `"backpropagation"`, by Adam."""

    method: str
    population: int
    sigma: float
    rate: float

    def __str__(self) -> str:
        noise = "" if self.population == 1 else f"population {self.population}, sigma {self.sigma:g}, "
        return f"{noise}rate {self.rate:g}"


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `[1797, 64]` from 0 to 1 and labels, in an order of their own; the last 297 are for the test."""
    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return (found.data[order] / 16).astype(np.float32), found.target[order].astype(np.int32)


def race(logits: Callable[..., jax.Array], params: Any, setting: Setting, seed: int, most: int, *, stop: bool) -> Curve:
    """Trains until `most` evaluations, or with `stop` until the level is reached.

    Args:
        logits: `(params, images, surrogate)` to `[rows, 10]`; backpropagation asks for its stand-in derivatives.
        params: to start from.
        setting: see `Setting`.
        seed: of the noise and of the minibatches.
        most: evaluations.
        stop: once the level is reached.
    """
    x, y = digits()
    test = jnp.asarray(x[TRAINING:]), jnp.asarray(y[TRAINING:])
    accuracy = jax.jit(lambda p: (logits(p, test[0]).argmax(1) == test[1]).mean())
    step, order, curve = _stepper(logits, params, setting, seed), np.random.default_rng(seed), []
    for number in range(1, most // setting.population + 1):
        chosen = order.integers(0, TRAINING, BATCH)
        params = step(jnp.asarray(x[chosen]), jnp.asarray(y[chosen]))
        curve.append((number * setting.population, float(accuracy(params))))
        if stop and curve[-1][1] >= LEVEL:
            break
    return curve


def _stepper(logits: Callable[..., jax.Array], params: Any, setting: Setting, seed: int) -> Callable[..., Any]:
    """A function of a minibatch that makes one step and gives the parameters after it."""
    optimizer = optax.adam(setting.rate)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    if setting.method == "backpropagation":
        slope = jax.grad(lambda p, x, y: entropy(logits(p, x, True), y).mean())
        now: Any = (params, optimizer.init(params))

        @jax.jit
        def update(now: Any, x: jax.Array, y: jax.Array) -> Any:
            updates, moments = optimizer.update(slope(now[0], x, y), now[1])
            return optax.apply_updates(now[0], updates), moments

        def descend(x: jax.Array, y: jax.Array) -> Any:
            nonlocal now
            now = update(now, x, y)
            return now[0]

        return descend
    rows = setting.method == "activations"
    who = {"population": setting.population, "sigma": setting.sigma, "optimizer": optimizer}
    es = eggroll.ES(**who, noise="activations" if rows else "weights")
    state = es.init(params, jax.random.key(seed))

    def fitness(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        losses = -entropy(logits(p, x), y)
        return losses if rows else losses.mean()

    def evolve(x: jax.Array, y: jax.Array) -> Any:
        nonlocal state
        state = es.step(state, fitness, x, y)[0]
        return state.params

    return evolve


def reached(curve: Curve) -> int | None:
    """Evaluations until the level was reached first; None where it never was."""
    return next((count for count, accuracy in curve if accuracy >= LEVEL), None)


def first(curve: Curve, evaluations: int) -> float:
    """The accuracy after so many evaluations, or at the end of a curve that is shorter."""
    return [accuracy for count, accuracy in curve if count <= max(evaluations, curve[0][0])][-1]
