"""The operations whose share of the device's limits `bench.roofline` reports: how to call each, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import eggroll
from bench.tools import needs
from bench.tools.linear import LEARNING_RATE, SIGMA, Layer, fitness, launched
from bench.tools.needs import Need
from eggroll.kernels import lowrank_dot, rank_update
from eggroll.strategy.generation import Generation

MLP = (64, 256, 256, 10)


@dataclass(frozen=True)
class Operation:
    """One line of the table.

    Attributes:
        name: without the width.
        width: of the layer, or None.
        need: the least that it has to do.
        call: without arguments; None where the time is that of others.
        timed: the key whose time counts, where it is not its own.
        beyond: the key whose time is subtracted.
        numbers: random numbers that a call draws.
    """

    name: str
    width: int | None
    need: Need
    call: Callable[[], Any] | None = None
    timed: str | None = None
    beyond: str | None = None
    numbers: int = 0


def of_layer(width: int, population: int, dtype: str, rank: int, distribution: str) -> dict[str, Operation]:
    """Everything that happens in a step of one layer, alone and together."""
    layer = Layer(width, population, dtype, rank, distribution)
    sizes = (width, width, rank)
    lowrank = "lowrank_dot, factors per member"
    both = {"rademacher": layer, "normal": Layer(width, population, dtype, rank, "normal")}
    found = [
        Operation("base product", width, needs.product(population, width, width, dtype), _product(layer)),
        Operation(
            "factored forward", width, needs.forward(population, layer.pairs, *sizes, dtype), _factored_forward(layer)
        ),
        Operation(lowrank, width, needs.forward(population, population, *sizes, dtype), _lowrank_dot(layer)),
        Operation(
            "thin and outer product (lowrank_dot less base)",
            width,
            needs.correction(population, population, *sizes, dtype),
            timed=f"{lowrank} {width}",
            beyond=f"base product {width}",
        ),
        *(_drawing(name, both[name]) for name in both),
        Operation("rank_update", width, needs.rank_update(layer.pairs, *sizes, dtype), _rank_update(layer)),
        Operation("es.step", width, needs.step(population, *sizes, distribution, dtype), _step(layer)),
    ]
    return {f"{operation.name} {width}": operation for operation in found}


def of_mlp(rows: int, population: int, rank: int, distribution: str) -> dict[str, Operation]:
    """A step of the digits MLP on rows that all members share."""
    need = needs.mlp_step(MLP, rows, population, rank, distribution)
    name = f"es.step, MLP {'-'.join(map(str, MLP))}"
    return {name: Operation(name, None, need, _mlp_step(rows, population, rank, distribution))}


def _product(layer: Layer) -> Callable[[], Any]:
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(layer.inputs, layer.weight)


def _factored_forward(layer: Layer) -> Callable[[], Any]:
    forward = jax.jit(layer.forward)
    return lambda: forward(layer.weight, *layer.factors, layer.inputs)


def _lowrank_dot(layer: Layer) -> Callable[[], Any]:
    """Every member with factors of its own, which are twice as many as pairs have."""
    run = jax.jit(jax.vmap(lowrank_dot, in_axes=(0, None, 0, 0)))
    left, right = (jnp.repeat(factor, 2, axis=0) for factor in layer.factors)
    return lambda: run(layer.inputs, layer.weight, left, right)


def _drawing(distribution: str, layer: Layer) -> Operation:
    """The factors of all pairs, as the strategy draws them; the right ones times σ."""
    numbers = 2 * layer.pairs * layer.width * layer.rank
    params, es = {"kernel": layer.weight}, layer.es
    plan = es.plan_for(params)

    @jax.jit
    def run(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        generation = Generation(es.settings, plan, key, SIGMA)

        def factors(pair: jax.Array) -> tuple[jax.Array, jax.Array]:
            seen = generation.member(params, 2 * pair)["kernel"]
            return seen.left, seen.right

        return jax.vmap(factors)(jnp.arange(layer.pairs))

    key = jax.random.key(5)
    need = needs.draw(numbers, distribution, layer.dtype)
    return Operation(f"draw {distribution}", layer.width, need, lambda: run(params, key), numbers=numbers)


def _rank_update(layer: Layer) -> Callable[[], Any]:
    weights = jax.random.normal(jax.random.key(6), (layer.pairs,))
    run = jax.jit(rank_update)
    return lambda: run(weights, *layer.factors)


class _Step:
    """`es.step`, state in, state out."""

    def __init__(self, es: eggroll.ES, state: Any, fun: Callable[..., Any], *args: Any, in_axes: Any = None) -> None:
        self.run = launched(lambda state, *args: es.step(state, fun, *args, in_axes=in_axes)[0])
        self.state, self.args = state, args

    def __call__(self) -> Any:
        self.state = self.run(self.state, *self.args)
        return self.state


def _step(layer: Layer) -> Callable[[], Any]:
    return _Step(layer.es, layer.state(), fitness, layer.inputs, in_axes=0)


def _mlp_step(rows: int, population: int, rank: int, distribution: str) -> Callable[[], Any]:
    keys = jax.random.split(jax.random.key(7), len(MLP))
    params = [
        {"kernel": jax.random.normal(key, (k, m)) * k**-0.5, "bias": jnp.zeros(m)}
        for key, k, m in zip(keys[1:], MLP, MLP[1:], strict=False)
    ]
    images = jax.random.normal(keys[0], (rows, MLP[0]))
    labels = jnp.arange(rows) % MLP[-1]
    es = eggroll.ES(
        population=population,
        sigma=SIGMA,
        rank=rank,
        optimizer=optax.sgd(LEARNING_RATE),
        distribution=distribution,
    )
    return _Step(es, es.init(params, jax.random.key(8)), _mlp_fitness, images, labels)


def _mlp_fitness(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    x = images
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return -jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
