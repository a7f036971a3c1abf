"""Small networks, their parameters and arguments, for noise on the outputs of their layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from eggroll.strategy.activations.streams import Streams

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 4))
SQUARE = {"w": jax.random.normal(KEY, (4, 4)) / 2, "b": jnp.full(4, 0.1)}


class Block(nnx.Module):
    """Attention and a gate, of which a causal transformer is made."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.norm, self.up = nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 6, rngs=rngs)
        self.down = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(jnp.ones(x.shape[:2])))
        return x + self.down(nnx.gelu(self.up(x)))


class Transformer(nnx.Module):
    """Two scanned layers that are made again for derivatives, a table of tokens and one of places."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(rngs)

        self.tokens, self.places = nnx.Embed(5, 4, rngs=rngs), nnx.Param(jax.random.normal(KEY, (4, 4)) / 4)
        self.blocks, self.head = blocks(rngs), nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def layers(block: Block, x: jax.Array) -> jax.Array:
            return block(x)

        return self.head(layers(self.blocks, self.tokens(tokens) + self.places[...]))


def transformer() -> tuple[Any, Any, tuple]:
    graphdef, params = nnx.split(Transformer(nnx.Rngs(0)), nnx.Param)
    tokens = jax.random.randint(KEY, (2, 5), 0, 5)

    def losses(params: Any, tokens: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])

    return losses, params, (tokens,)


def linen_model(layers: Any, x: jax.Array, **apply: Any) -> tuple[Any, Any, tuple]:
    model = linen.Sequential(layers)
    variables = model.init(KEY, x)
    labels = jnp.arange(x.shape[0]) % 3

    def losses(params: Any, x: jax.Array) -> jax.Array:
        out = model.apply({**variables, "params": params}, x, **apply)
        out = out[0] if apply else out
        each = labels.reshape(-1, *[1] * (out.ndim - 2))  # of every token, where there are some
        return optax.softmax_cross_entropy_with_integer_labels(out, jnp.broadcast_to(each, out.shape[:-1]))

    return losses, variables["params"], (x,)


def convolutions() -> tuple[Any, Any, tuple]:
    layers = [
        linen.Conv(4, (3, 3), strides=2, feature_group_count=2),
        linen.GroupNorm(2),
        linen.relu,
        linen.ConvTranspose(3, (2, 2)),
        lambda x: x.mean((1, 2)),
        linen.Dense(3),
    ]
    return linen_model(layers, jax.random.normal(KEY, (4, 6, 6, 2)))


def batch_norm() -> tuple[Any, Any, tuple]:
    layers = [linen.Dense(4), linen.BatchNorm(use_running_average=False), linen.tanh, linen.Dense(3)]
    return linen_model(layers, jax.random.normal(KEY, (4, 3)), mutable=["batch_stats"])


def lstm() -> tuple[Any, Any, tuple]:
    return linen_model([linen.RNN(linen.LSTMCell(3)), linen.Dense(3)], jax.random.normal(KEY, (2, 4, 3)))


def turns(loop: bool, p: Any, x: jax.Array) -> jax.Array:
    """A loop of unknown length, a branch, a product of two parameters and one that nothing but its sine is used of."""
    layer = lambda h: jnp.tanh(h @ p["w"] + p["b"])  # noqa: E731
    turned = lambda: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, layer(c[1])), (0, x))[1]  # noqa: E731
    h = turned() if loop else layer(layer(layer(x)))
    branches = [lambda h: h * p["scale"], lambda h: h + p["scale"]]
    h = lax.cond(x[0, 0] > 0, *branches, h) if loop else branches[0 if float(X[0, 0]) > 0 else 1](h)
    return (h @ (p["a"] @ p["c"])).sum(1) ** 2 + jnp.sin(p["scale2"]).sum()


def mixed() -> tuple[Any, Any, tuple]:
    p = SQUARE | {"scale": jnp.ones(4), "scale2": jnp.ones(2), "a": jnp.ones((4, 2)) / 3, "c": jnp.ones((2, 4)) / 3}
    return partial(turns, True), p, (X,)


def framed() -> tuple[Any, Any, tuple]:
    """One parameter used outside and inside a branch, another in branches that `jax.vmap` makes a select of."""

    def losses(p: Any, x: jax.Array) -> jax.Array:
        scaled = p["scale"] * jnp.arange(1.0, 5.0)
        branches = [lambda r: jnp.tanh(r @ p["u"]), lambda r: r @ p["u"].T]
        h = jax.vmap(lambda r, x: lax.cond(x[0] > 0, *branches, r))(jnp.tanh(x @ p["w"]), x)
        inside = lax.cond(x[0, 0] > -9, lambda: jnp.sin(scaled).sum(), lambda: 0.0)
        return (h**2).sum(1) + jnp.tanh(scaled).sum() + inside

    return losses, {"w": SQUARE["w"], "u": SQUARE["w"].T, "scale": jnp.full(4, 0.3)}, (X,)


def enumerated(monkeypatch: Any, sites: list[tuple[int, ...]]) -> int:
    """Units whose noise is every pattern of ±1 at these sites, once each; returns the population."""
    first = np.cumsum([0, *(int(np.prod(s)) for s in sites)])

    def noise(self: Any, made: Any, frame: Any, units: jax.Array) -> jax.Array:
        bits = np.arange(made.value.size, dtype=np.uint32) + np.uint32(first[self.places[made.where].number])
        drawn = (units.astype(jnp.uint32)[:, None] >> bits) & 1
        return (1.0 - 2.0 * drawn.astype(made.value.dtype)).reshape(-1, *made.value.shape)

    monkeypatch.setattr(Streams, "noise", noise)
    monkeypatch.setattr(Streams, "_crosses", lambda *_: False)
    return 2 * 2 ** int(first[-1])
