"""The unit that speed is measured in: pure inference of the same rows, as users write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import eggroll
from bench.tools.networks import Network


@dataclass(frozen=True)
class Inference:
    """One `jax.vmap` over the members, compiled: unperturbed weights are shared, rows are each member's own argument.

    Attributes:
        call: without arguments; returns the outputs of all members, part by part.
        parts: vmapped calls that the members are split over: 1, or as few as fit the memory allowed.
    """

    call: Callable[[], list[Any]]
    parts: int


def plain_inference(fun: Callable[..., Any], params: Any, rows: tuple[jax.Array, ...], limit: float) -> Inference:
    """Inference that is given every member's rows, in as few vmapped calls as keep each below `limit`.

    Args:
        fun: `fun(params, *rows)` of one member.
        params: unperturbed.
        rows: arrays `[members, ...]`.
        limit: bytes for what a call makes: outputs and temporary arrays.
    """
    members = len(rows[0])
    batched = jax.jit(jax.vmap(fun, in_axes=(None, *[0] * len(rows))))
    for parts in (n for n in range(1, members + 1) if members % n == 0):
        size = members // parts
        shapes = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in rows]
        compiled = batched.lower(params, *shapes).compile()
        if _bytes_made(compiled) <= limit:
            break
    pieces = [tuple(x[i : i + size] for x in rows) for i in range(0, members, size)] if parts > 1 else [rows]
    return Inference(lambda: [compiled(params, *piece) for piece in pieces], parts)


def limit(network: Network, population: int, chunk: int) -> Callable[[], Any]:
    """Inference to fitness in chunks of members, so that their activations may stay in cache.

    What all members share is computed once, as in a step: where they share their rows, the first product. So that they
    share nothing else, one parameter has noise, the bias or scale nearest to the inputs; no product is corrected.
    """
    rows = network.rows(population)
    if network.own_rows:
        return chunked_inference(network.fitness, network.params, rows, chunk).call
    rules = [(network.nearest, "dense"), (".*", "frozen")]
    es = eggroll.ES(population=population, sigma=0.01, chunk=chunk, rules=rules)
    members = es.ask(es.init(network.params, jax.random.key(3)))
    return lambda: members.apply(network.fitness, *rows)


def chunked_inference(fun: Callable[..., Any], params: Any, rows: tuple[jax.Array, ...], size: int) -> Inference:
    """Plain inference in one call that evaluates `size` members at a time, each on rows of its own `[members, ...]`."""
    chunked = jax.jit(lambda p, rows: jax.lax.map(lambda own: fun(p, *own), rows, batch_size=size))
    compiled = chunked.lower(params, rows).compile()
    return Inference(lambda: [compiled(params, rows)], 1)


def _bytes_made(compiled: Any) -> int:
    need = compiled.memory_analysis()
    return need.temp_size_in_bytes + need.output_size_in_bytes if need else 0
