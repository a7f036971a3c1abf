"""Small functions of noise inside, and the losses that they return: for what depends on what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

B, T, D = 3, 6, 4
ROWS = np.eye(B, dtype=bool)
LATER = np.triu(np.ones((T, T), bool))  # [index of the site, loss]: this token's and later ones'
KEY = jax.random.key(0)
W = jax.random.normal(KEY, (D, D)) / 2
WIDE = jax.random.normal(KEY, (D, 4 * D)) / 2
X = jax.random.normal(jax.random.key(1), (B, T, D))
Y = jax.random.randint(jax.random.key(2), (B, T), 0, D)


def site(*shape: int) -> jax.Array:
    return jnp.zeros(shape or (B, T, D))


def attend(q, k, v, mask=None, bias=None):
    """Attention by hand, one head: `[B, T, D]` each."""
    scores = jnp.einsum("bqd,bkd->bqk", q, k) / 2
    scores = scores if mask is None else jnp.where(mask, scores, -1e9)
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores if bias is None else scores + bias), v)


def causal(n, m, o):
    return X + attend(X @ W + n, X @ W + m, X @ W + o, jnp.tril(jnp.ones((T, T), bool)))


def biased(n, m, o):
    bias = np.where(np.tril(np.ones((T, T))), 0, -1e9).astype(np.float32)
    return X + attend(X @ W + n, X @ W + m, X @ W + o, bias=bias)


def encoder(n, m, o):
    return X + attend(X @ W + n, X @ W + m, X @ W + o)


def banded(n, m, o):
    rows, columns = jnp.arange(T)[:, None], jnp.arange(T)
    return X + attend(X @ W + n, X @ W + m, X @ W + o, (rows >= columns) & (rows - columns < 2))


def heads(n, m, o):
    q, k, v = ((X @ W + s).reshape(B, T, 2, 2) for s in (n, m, o))
    return X + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(B, T, D)


def vmapped(n, m, o):
    def row(x, n, m, o):
        q, k, v = ((x @ W + s).reshape(T, 2, 2) for s in (n, m, o))
        scores = jax.vmap(lambda q, k: q @ k.T, 1)(q, k) + jnp.triu(jnp.full((T, T), -jnp.inf), 1)
        return x + jax.vmap(lambda p, v: p @ v, (0, 1), 1)(jax.nn.softmax(scores), v).reshape(T, D)

    return jax.vmap(row)(X, n, m, o)


def of_nnx(n, m, o):
    model = nnx.MultiHeadAttention(2, D, decode=False, rngs=nnx.Rngs(0))
    q, k, v = X + n, X + m, X + o
    return X + model(q, k, v, mask=nnx.make_causal_mask(X[..., 0]))


def of_linen(n, m, o):
    model = linen.MultiHeadDotProductAttention(2)
    call = lambda *args: model.init_with_output(KEY, *args, mask=linen.make_causal_mask(X[..., 0]))[0]  # noqa: E731
    return X + call(X + n, X + m, X + o)


def total(function):
    return lambda *args: jnp.tanh(function(*args)).sum(-1)


ATTENTION = {"mask": causal, "bias": biased, "heads": heads, "vmapped": vmapped, "nnx": of_nnx, "linen": of_linen}


def scanned(noise, remat: bool, inside: bool):
    mask = jnp.tril(jnp.ones((T, T), bool))

    def layer(x, n):
        made = jnp.arange(T)[:, None] >= jnp.arange(T) if inside else mask
        return x + attend(x @ W, x @ W + n, x @ W + n, made), None

    return jnp.sin(lax.scan(jax.checkpoint(layer) if remat else layer, X, noise)[0]).sum(-1)


def lstm(noise, reverse=False):
    def step(carry, now):
        x, n = now
        cell, hidden = carry
        gates = jnp.split(x @ WIDE + hidden @ WIDE + jnp.tile(n, 4), 4, -1)
        i, f, o = map(jax.nn.sigmoid, gates[:3])
        cell = f * cell + i * jnp.tanh(gates[3])
        hidden = o * jnp.tanh(cell)
        return (cell, hidden), hidden

    first = (jnp.zeros((B, D)), jnp.zeros((B, D)))
    return lax.scan(step, first, (X.swapaxes(0, 1), noise), reverse=reverse)[1].sum(-1).T


def convolved(n, padding="CAUSAL"):
    conv = nnx.Conv(D, D, (3,), padding=padding, kernel_dilation=2, rngs=nnx.Rngs(0))
    return jnp.sin(conv(X + n)).sum(-1)


def images(n, m):
    first, second = (nnx.Conv(2, 2, (3, 3), strides=s, rngs=nnx.Rngs(0)) for s in (1, 2))
    x = nnx.relu(first(jnp.ones((B, 8, 4, 2)) + n)) + m
    x = nnx.max_pool(second(x), (2, 2), (2, 2))
    return jnp.sin(x).sum((2, 3))


def batch_norm(n, m):
    x = nnx.BatchNorm(D, rngs=nnx.Rngs(0))(X[:, 0] + n)
    return jnp.sin(x + m).sum(-1)


def layer_norm(n):
    return jnp.sin(nnx.LayerNorm(D, rngs=nnx.Rngs(0))(X + n)).sum(-1)


def labelled(n):
    return optax.softmax_cross_entropy_with_integer_labels(X @ W + n, Y)


def routed(n, m):
    gates, experts = lax.top_k(jax.nn.softmax(X @ W + n), 2)
    outputs = jnp.einsum("btd,edf->btef", X, jnp.stack([W] * D)) + m[:, :, None]
    picked = jnp.take_along_axis(outputs, experts[..., None], 2)
    return (gates[..., None] * picked).sum((-1, -2))


def padded(n):
    x = jnp.pad(X + n, ((0, 0), (2, 0), (0, 0)))[:, :T]
    return (x[:, ::2] * x[:, 1::2]).sum(-1) + jnp.flip(x, 1)[:, :3, 0]


def updated(n, m):
    x = (X + n).at[:, 2].set(m[:, 0]).at[jnp.arange(B)[:, None], Y].add(m[:, :T])
    return lax.dynamic_update_slice(x, m[:, :2], (0, 3, 0)).sum(-1) + lax.dynamic_slice(m, (0, 1, 1), (B, T, 1))[..., 0]


def looped(n):
    def body(carry):
        i, x = carry
        return i + 1, jnp.tanh(x @ W + n)

    return lax.while_loop(lambda c: c[0] < 3, body, (0, X))[1].sum(-1)


def branched(n):
    return lax.cond(n[0, 0, 0] > 0, lambda x: x.sum(-1), lambda x: jnp.cumsum(x, 1)[..., 0], X + n)


def sorted_(n):
    x = jnp.sort(X + n, 1)
    return x[..., 0] + lax.cumlogsumexp(X + n, 1, reverse=True)[..., 0]


def callback(n):
    shape = jax.ShapeDtypeStruct((B, T), X.dtype)
    return (X + n).sum(-1) + jax.pure_callback(lambda x: np.asarray(x).sum(-1), shape, lax.stop_gradient(n))


def fully_masked(n, m):
    mask = jnp.tril(jnp.ones((T, T), bool), -1)  # the first token sees nothing, so all
    return attend(X, X + n, X + m, mask).sum(-1)


def padding(n, m):
    """Where data may mask all that the causal mask leaves, a token sees the later ones too."""
    mask = jnp.tril(jnp.ones((T, T), bool)) & (m[:, None, :, 0] > 0)
    return attend(X, X, X + n, mask).sum(-1)


def transposed(n):
    return jnp.einsum("btd,bsd->bts", X + n, X + n).sum(-1)[:, ::-1]


SHORT = (B, T + 1, D)
# Each with its sites, and whether the claim is exact; it is not where a token that sees itself alone has any score.
CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], bool]] = {
    "encoder": (total(encoder), ((B, T, D),) * 3, True),
    "window": (total(banded), ((B, T, D),) * 3, False),
    "mask": (total(causal), ((B, T, D),) * 3, False),
    "nnx": (total(of_nnx), ((B, T, D),) * 3, False),
    "scan": (lambda n: scanned(n, True, True), ((2, B, T, D),), True),
    "lstm": (lstm, ((T, B, D),), True),
    "backwards": (lambda n: lstm(n, True), ((T, B, D),), True),
    "causal convolution": (convolved, ((B, T, D),), True),
    "same convolution": (lambda n: convolved(n, "SAME"), ((B, T, D),), True),
    "images": (images, ((B, 8, 4, 2),) * 2, True),
    "batch norm": (batch_norm, ((B, D),) * 2, True),
    "layer norm": (layer_norm, ((B, T, D),), True),
    "labels": (labelled, ((B, T, D),), True),
    "experts": (routed, ((B, T, D),) * 2, True),
    "cumulative": (lambda n: jnp.cumsum((X + n).sum(-1), 1), ((B, T, D),), True),
    "flat": (lambda n: (n @ W).reshape(B, T, D).sum(-1), ((B * T, D),), True),
    "padded": (padded, ((B, T, D),), True),
    "updated": (updated, ((B, T, D), SHORT), False),
    "while": (looped, ((B, T, D),), True),
    "cond": (branched, ((B, T, D),), False),
    "sort": (sorted_, ((B, T, D),), False),
    "masked": (fully_masked, ((B, T, D),) * 2, False),
    "padding": (padding, ((B, T, D),) * 2, False),
    "transposed": (transposed, ((B, T, D),), False),
}


def stored(n):
    kept = jax.new_ref(X)
    kept[...] = X + n
    return kept[...].sum(-1)
