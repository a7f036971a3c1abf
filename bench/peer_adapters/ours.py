"""eggroll: `ES.step`, defaults except for the optimizer (gradient descent, as the peers have it)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import eggroll
from bench.peer_adapters import Candidate, Work, distribution_version
from bench.tools import networks
from bench.tools.linear import Layer, fitness, product

NAME = "eggroll"
GET = "pip install -e ."
UNIT = "jax"
DISTRIBUTION = "rademacher"


@dataclass(frozen=True)
class Problem:
    """A work in JAX.

    Attributes:
        params: pytree.
        model: `model(params, rows)` → outputs.
        fitness: `fitness(params, *rows)` → scalar, maximised.
        rows: arguments of `fitness`.
        in_axes: 0 where each member has a row of its own, None where members share them.
        copies: makes the inputs with a leading axis of members in any case, each with memory of its own.
    """

    params: Any
    model: Callable[..., Any]
    fitness: Callable[..., jax.Array]
    rows: tuple[jax.Array, ...]
    in_axes: int | None
    copies: Callable[[], jax.Array]


def problem(work: Work) -> Problem:
    """The work in JAX, for every peer that uses it."""
    if work.name == "layer":
        layer = Layer(work.width, work.population, rank=work.rank)
        return Problem({"kernel": layer.weight}, product, fitness, (layer.inputs,), 0, lambda: layer.inputs)
    net = networks.digits(rows=work.rows)
    rows = net.rows(work.population)
    return Problem(net.params, net.fun, net.fitness, rows, None, lambda: net.copies(work.population, targets=False)[0])


def inference(problem: Problem) -> Callable[[], jax.Array]:
    """Pure inference as users write it: one `vmap` over members, the parameters shared."""
    run = jax.jit(jax.vmap(problem.model, in_axes=(None, 0)))
    copies = functools.cache(
        problem.copies
    )  # made at the first call: a process that only makes steps has no use for them
    return lambda: run(problem.params, copies())


def version() -> str:
    """Version of the distribution."""
    return distribution_version("eggroll-jax", GET)


def dense_copies(work: Work) -> float:
    """Dense copies of the population's parameters that a step holds at once."""
    return 0.0


def prepare(work: Work, distribution: str = DISTRIBUTION) -> Candidate:
    """The step, and inference in JAX."""
    task = problem(work)
    es = eggroll.ES(
        population=work.population,
        sigma=work.sigma,
        rank=work.rank,
        optimizer=optax.sgd(work.learning_rate),
        distribution=distribution,
    )
    state = es.init(jax.tree.map(jnp.array, task.params), jax.random.key(3))

    def step() -> Any:
        nonlocal state
        state, metrics = es.step(state, task.fitness, *task.rows, in_axes=task.in_axes)
        return state, metrics

    return Candidate(step, inference(task))
