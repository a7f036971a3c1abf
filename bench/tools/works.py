"""Works small enough to be learned hundreds of times: what `bench.tuning` tunes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bench.pretrain import mean_loss, text, windows
from bench.tools import transformer
from bench.tools.digits_race import TRAINING, digits

ROWS, TOKENS = 64, 32


@dataclass(frozen=True)
class Work:
    """What is learned.

    Attributes:
        start: key → parameters.
        fitness: of parameters and a batch.
        batch: key → batch, the same for all members.
        score: of parameters: what is compared; higher is better.
        generations: updates.
        population: members.
        unit: size of a weight, for the grid.
    """

    start: Callable[[jax.Array], Any]
    fitness: Callable[[Any, Any], jax.Array]
    batch: Callable[[jax.Array], Any]
    score: Callable[[Any], jax.Array]
    generations: int = 200
    population: int = 128
    unit: float = 1.0


def layer(key: jax.Array, *shape: int) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(key, shape) * math.sqrt(2 / math.prod(shape[:-1])), "b": jnp.zeros(shape[-1])}


def mlp(activation: Callable[[jax.Array], jax.Array] = jax.nn.relu, size: float = 1.0, *widths: int) -> Work:
    widths = widths or (64, 128, 128, 10)

    def start(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(widths))
        return [layer(k, *shape) for k, *shape in zip(keys, widths, widths[1:], strict=False)]

    def logits(p: Any, x: jax.Array) -> jax.Array:
        for each in p[:-1]:
            x = activation(x @ each["w"] + each["b"])
        return (x @ p[-1]["w"] + p[-1]["b"]) * size

    return classifier(start, logits)


def sign() -> Work:
    return mlp(lambda h: jnp.where(h >= 0, 1.0, -1.0), 128**-0.5)


def cnn() -> Work:
    def start(key: jax.Array) -> Any:
        a, b, c = jax.random.split(key, 3)
        return [layer(a, 3, 3, 1, 16), layer(b, 3, 3, 16, 32), layer(c, 128, 10)]

    def logits(p: Any, x: jax.Array) -> jax.Array:
        x = x.reshape(-1, 8, 8, 1)
        for each in p[:-1]:
            x = lax.conv_general_dilated(x, each["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + each["b"])
        return x.reshape(len(x), -1) @ p[-1]["w"] + p[-1]["b"]

    return classifier(start, logits)


def classifier(start: Callable[[jax.Array], Any], logits: Callable[[Any, jax.Array], jax.Array]) -> Work:
    x, y = map(jnp.asarray, digits())

    def fitness(p: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return -optax.softmax_cross_entropy_with_integer_labels(logits(p, batch[0]), batch[1]).mean()

    def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.random.randint(key, (ROWS,), 0, TRAINING)
        return x[rows], y[rows]

    return Work(start, fitness, batch, lambda p: fitness(p, (x[TRAINING:], y[TRAINING:])))


def bytes_of_text() -> Work:
    data = text()
    held_out = len(data) * 9 // 10
    seen = jnp.asarray(data[:held_out].astype(np.int32))
    test = windows(data, np.arange(held_out, len(data) - TOKENS - 1, TOKENS)[:64], TOKENS)

    def batch(key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (8,), 0, held_out - TOKENS - 1)
        return jax.vmap(lambda i: lax.dynamic_slice(seen, (i,), (TOKENS + 1,)))(starts)

    def fitness(p: Any, batch: jax.Array) -> jax.Array:
        return -mean_loss(p, batch)

    return Work(lambda key: transformer.init(key, depth=2, width=32), fitness, batch, lambda p: fitness(p, test))


def regression() -> Work:
    inputs = jax.random.normal(jax.random.key(7), (512, 20)) * jnp.logspace(-1, 1, 20)
    targets = inputs @ (jax.random.normal(jax.random.key(8), (20, 5)) * 300)

    def fitness(p: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return -jnp.mean((batch[0] @ p["w"] + p["b"] - batch[1]) ** 2)

    def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.random.randint(key, (ROWS,), 0, len(inputs))
        return inputs[rows], targets[rows]

    def start(key: jax.Array) -> Any:
        return {"w": jnp.zeros((20, 5)), "b": jnp.zeros(5)}

    return Work(start, fitness, batch, lambda p: -jnp.sqrt(-fitness(p, (inputs, targets))), unit=100.0)


def cartpole() -> Work:
    """The pole of Barto, Sutton and Anderson (1983), up to 500 steps; the argmax of a network pushes."""
    network = mlp(jnp.tanh, 1.0, 4, 32, 32, 2)

    def episode(p: Any, key: jax.Array) -> jax.Array:
        def step(now: tuple, _: None) -> tuple[tuple, None]:
            (x, v, angle, turning), alive, total = now
            h = jnp.stack([x, v, angle, turning])
            for each in p[:-1]:
                h = jnp.tanh(h @ each["w"] + each["b"])
            force = jnp.where(jnp.argmax(h @ p[-1]["w"] + p[-1]["b"]) == 1, 10.0, -10.0)
            pushed = (force + 0.05 * turning**2 * jnp.sin(angle)) / 1.1
            falls = 9.8 * jnp.sin(angle) - jnp.cos(angle) * pushed
            falls = falls / (0.5 * (4 / 3 - 0.1 * jnp.cos(angle) ** 2 / 1.1))
            goes = pushed - 0.05 * falls * jnp.cos(angle) / 1.1
            after = x + 0.02 * v, v + 0.02 * goes, angle + 0.02 * turning, turning + 0.02 * falls
            upright = (jnp.abs(after[0]) < 2.4) & (jnp.abs(after[2]) < 0.2095)
            return (after, alive * upright, total + alive), None

        begun = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return lax.scan(step, (tuple(begun), jnp.float32(1), jnp.float32(0)), None, length=500)[0][2]

    def fitness(p: Any, keys: jax.Array) -> jax.Array:
        return lax.map(lambda key: episode(p, key), keys).mean()

    keys = jax.random.split(jax.random.key(9), 32)
    batch = lambda key: jax.random.split(key, 2)  # noqa: E731
    return Work(network.start, fitness, batch, lambda p: fitness(p, keys), generations=30, population=64)


WORKS: dict[str, Callable[[], Work]] = {
    **{"mlp": mlp, "sign": sign, "cnn": cnn},
    **{"transformer": bytes_of_text, "regression": regression, "cartpole": cartpole},
}
