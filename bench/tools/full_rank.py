"""OpenAI-ES on one linear layer: every pair of members has dense normal noise of its own.

What full-rank ES costs when it is written well in JAX, for `bench.layer` to compare with. All rows share one product
with the weight, and only `x·E` is made for each pair, so that no perturbed weight is ever formed; a pair is one draw
with two signs; noise is drawn once for the evaluation and the update; a scan over pairs keeps memory flat. Noise is
`jax.random.normal`.

References:
    T. Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", arXiv 1703.03864.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bench.tools.linear import LEARNING_RATE, SIGMA, Layer, reduced

CHUNK_BYTES = 256 << 20  # of noise at once on an accelerator


def pairs_at_once(layer: Layer) -> int:
    """Pairs whose noise is drawn at once: one on a CPU, else the largest divisor that fits `CHUNK_BYTES`."""
    if jax.default_backend() == "cpu":  # one pair fills all cores, and its noise may stay in cache: twice as fast
        return 1
    limit = max(1, CHUNK_BYTES // layer.weight.nbytes)
    return next(count for count in range(min(limit, layer.pairs), 0, -1) if layer.pairs % count == 0)


def given_noise(layer: Layer, key: jax.Array) -> jax.Array:
    """`[pairs, width, width]`, drawn beforehand; outputs before inputs, the faster order for a product."""
    return jax.jit(lambda keys: lax.map(lambda k: _draw(layer, k), keys))(_keys(layer, key))


def forward(layer: Layer, weight: jax.Array, inputs: jax.Array, key: jax.Array) -> jax.Array:
    """Outputs `[population, width]`, noise on the fly."""
    chunks = _chunks(layer, weight, inputs, key)
    return lax.map(lambda chunk: _drawn(layer, *chunk)[0], chunks).reshape(layer.population, -1)


def forward_given(layer: Layer, weight: jax.Array, inputs: jax.Array, noise: jax.Array) -> jax.Array:
    """Outputs `[population, width]`, noise from `given_noise`."""
    rows, base = _pairs(inputs, layer.pairs), _pairs(inputs @ weight, layer.pairs)
    return _outputs(rows, base, noise).reshape(layer.population, -1)


def step(layer: Layer, weight: jax.Array, inputs: jax.Array, key: jax.Array) -> jax.Array:
    """One update of the float32 `weight` by SGD on z-scored fitness, noise on the fly."""

    def add(total: jax.Array, chunk: Any) -> tuple[jax.Array, jax.Array]:
        outputs, noise = _drawn(layer, *chunk)
        fitness = reduced(outputs)
        return total + _weighted_sum(fitness, noise), fitness

    chunks = _chunks(layer, weight.astype(layer.dtype), inputs, key)
    total, fitness = lax.scan(add, jnp.zeros(weight.shape, jnp.float32), chunks)
    return _moved(layer, weight, total, fitness)


def step_given(layer: Layer, weight: jax.Array, inputs: jax.Array, noise: jax.Array) -> jax.Array:
    """As `step`, noise from `given_noise`."""
    rows, base = _pairs(inputs, layer.pairs), _pairs(inputs @ weight.astype(layer.dtype), layer.pairs)
    fitness = reduced(_outputs(rows, base, noise))
    return _moved(layer, weight, _weighted_sum(fitness, noise), fitness)


def _draw(layer: Layer, key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (layer.width, layer.width), layer.dtype)


def _keys(layer: Layer, key: jax.Array) -> jax.Array:
    return jax.vmap(lambda pair: jax.random.fold_in(key, pair))(jnp.arange(layer.pairs))


def _pairs(rows: jax.Array, pairs: int) -> jax.Array:
    return rows.reshape(pairs, 2, -1)


def _chunks(layer: Layer, weight: jax.Array, inputs: jax.Array, key: jax.Array) -> Any:
    """(inputs, base products, keys) with axes `[chunks, pairs in a chunk, ...]`; one base product for all."""
    arrays = _pairs(inputs, layer.pairs), _pairs(inputs @ weight, layer.pairs), _keys(layer, key)
    return jax.tree.map(lambda x: x.reshape(-1, pairs_at_once(layer), *x.shape[1:]), arrays)


def _drawn(layer: Layer, rows: jax.Array, base: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(outputs `[pairs, 2, width]`, noise) of one chunk."""
    noise = _made_once(lambda: jax.vmap(lambda key: _draw(layer, key))(keys), rows[0, 0, 0])
    return _outputs(rows, base, noise), noise


def _made_once(make: Callable[[], jax.Array], number: jax.Array) -> jax.Array:
    """`make()`, kept in memory: XLA would fuse parts of it into every use, and so make them twice."""
    if jax.default_backend() != "cpu":
        return lax.optimization_barrier(make())
    # On a CPU barriers are gone before fusion. A branch stays, which is always taken but XLA cannot know that.
    noise = jax.eval_shape(make)
    return lax.cond(number == number, make, lambda: jnp.zeros(noise.shape, noise.dtype))


def _outputs(rows: jax.Array, base: jax.Array, noise: jax.Array) -> jax.Array:
    scale = jnp.array([[SIGMA], [-SIGMA]], rows.dtype)
    return base + scale * jnp.einsum("pnk,psk->psn", noise, rows)


def _weighted_sum(fitness: jax.Array, noise: jax.Array) -> jax.Array:
    """`[outputs, inputs]`, float32. The mean of z-scores cancels in a pair; their common scale comes later."""
    return jnp.tensordot(fitness[:, 0] - fitness[:, 1], noise.astype(jnp.float32), 1)


def _moved(layer: Layer, weight: jax.Array, total: jax.Array, fitness: jax.Array) -> jax.Array:
    gradient = -total.T / (layer.population * SIGMA * jnp.std(fitness))
    sgd = optax.sgd(LEARNING_RATE)
    change, _ = sgd.update(gradient, sgd.init(weight))
    return optax.apply_updates(weight, change)
