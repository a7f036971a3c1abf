"""Which losses depend on which entries of a site: never fewer than move, and exactly these where it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree

from eggroll.strategy.dependence.relations import Along, Relation, dependence
from tests.quick import quickest

B, T, D = 3, 6, 4
ROWS = np.eye(B, dtype=bool)
LATER = np.triu(np.ones((T, T), bool))  # [index of the site, loss]: this token's and later ones'
KEY = jax.random.key(0)
W = jax.random.normal(KEY, (D, D)) / 2
WIDE = jax.random.normal(KEY, (D, 4 * D)) / 2
X = jax.random.normal(jax.random.key(1), (B, T, D))
Y = jax.random.randint(jax.random.key(2), (B, T), 0, D)


def claimed(relation: Relation | None, site: tuple[int, ...], losses: tuple[int, ...]) -> np.ndarray:
    """What a relation says as one table `[*site, *losses]`."""
    table = np.full((*site, *losses), relation is not None)
    places = np.indices(table.shape)
    waiting = [(k, along) for k, along in enumerate(relation or ()) if along is not None]
    for k, along in waiting:
        i = places[along.axis] // along.stride % along.size
        t = places[len(site) + k] // along.loss_stride % along.loss_size
        table &= i == t if along.reach is None else along.reach[i, t]
        waiting += [(k, other) for other in along.also]
    return table


def true(function: Callable[..., Any], sites: list[Any]) -> list[np.ndarray]:
    """Which losses move, bit by bit, when one entry of a site does: a table `[*site, *losses]` for each site."""
    flat, parts = ravel_pytree(sites)
    bases = jax.random.normal(KEY, (2, 1, flat.size)) / 2
    points = bases + jnp.concatenate([jnp.zeros((1, flat.size)), jnp.eye(flat.size)]) * 0.75
    losses = jax.jit(lambda points: lax.map(lambda p: function(*parts(p)), points))  # the same program for each
    values = np.asarray(losses(points.reshape(-1, flat.size))).reshape(2, flat.size + 1, -1)
    moved = (values[:, 1:] != values[:, :1]).any(0)
    ends = np.cumsum([s.size for s in sites])[:-1]
    shape = jax.eval_shape(function, *sites).shape
    return [m.reshape(s.shape + shape) for s, m in zip(sites, np.split(moved, ends), strict=True)]


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


def relations(function: Callable[..., Any], *sites: Any) -> list[Relation | None]:
    return dependence(jax.make_jaxpr(function)(*sites), range(len(sites)))


@pytest.mark.parametrize("name", ATTENTION)
def test_a_causal_mask_leaves_this_token_and_later_ones(name):
    queries, *others = relations(total(ATTENTION[name]), site(), site(), site())
    own = np.eye(T, dtype=bool)
    for found, reach in ((queries, own), (others[0], LATER), (others[1], LATER)):
        rows, tokens = found
        assert (rows.axis, rows.reach, rows.own) == (0, None, 0)
        assert (tokens.axis, tokens.own) == (1, 0)
        np.testing.assert_array_equal(own if tokens.reach is None else tokens.reach, reach)


def test_without_a_mask_all_tokens_depend_but_each_knows_its_own():
    _, keys, values = relations(total(encoder), site(), site(), site())
    for rows, tokens in (keys, values):
        assert rows.reach is None and tokens.reach.all() and tokens.own == 0


def test_a_sliding_window_widens_by_layers():
    def layers(n, m):
        x = X + n
        for noise in (m, 0):
            x = x + attend(x, x + noise, x @ W, jnp.asarray(band))
        return jnp.sin(x).sum(-1)

    band = np.tril(np.ones((T, T), bool)) & ~np.tril(np.ones((T, T), bool), -2)
    first, keys = relations(layers, site(), site())
    np.testing.assert_array_equal(first[1].reach, (band.T.astype(int) @ band.T) > 0)
    np.testing.assert_array_equal(keys[1].reach, (band.T.astype(int) @ band.T) > 0)


def scanned(noise, remat: bool, inside: bool):
    mask = jnp.tril(jnp.ones((T, T), bool))

    def layer(x, n):
        made = jnp.arange(T)[:, None] >= jnp.arange(T) if inside else mask
        return x + attend(x @ W, x @ W + n, x @ W + n, made), None

    return jnp.sin(lax.scan(jax.checkpoint(layer) if remat else layer, X, noise)[0]).sum(-1)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_scan_over_layers_keeps_the_mask(remat, inside):
    (found,) = relations(lambda n: scanned(n, remat, inside), site(2, B, T, D))
    rows, tokens = found
    assert (rows.axis, rows.reach, tokens.axis, tokens.own) == (1, None, 2, 0)
    np.testing.assert_array_equal(tokens.reach, LATER)


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


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_time_reaches_this_step_and_later_ones(reverse):
    (found,) = relations(lambda n: lstm(n, reverse), site(T, B, D))
    rows, tokens = found
    assert (rows.axis, rows.reach, tokens.axis, tokens.own) == (1, None, 0, 0)
    np.testing.assert_array_equal(tokens.reach, LATER.T if reverse else LATER)


def test_rows_cost_nothing_and_batch_statistics_tie_all():
    rows = 100_000

    def loss(n, m):
        x = jnp.tanh(n)
        normal = (x - x.mean(0)) / (x.std(0) + 1)
        return optax.softmax_cross_entropy_with_integer_labels(normal + m, jnp.zeros(rows, int))

    through, after = jax.eval_shape(lambda: (site(rows, D), site(rows, D)))
    through, after = relations(loss, through, after)
    assert (after[0].axis, after[0].reach, after[0].own) == (0, None, 0)
    assert (through[0].axis, through[0].own) == (0, 0)
    assert through[0].reach.shape == (rows, rows) and through[0].reach.strides == (0, 0)


def test_merged_rows_and_tokens_keep_their_digits():
    flat, whole = relations(lambda n, m: ((X + m).reshape(-1, D) @ W + n).reshape(B, T, D).sum(-1), site(B * T, D), X)
    assert [(a.axis, a.stride, a.size, a.reach) for a in flat] == [(0, T, B, None), (0, 1, T, None)]
    assert [(a.axis, a.stride, a.size, a.reach) for a in whole] == [(0, 1, B, None), (1, 1, T, None)]
    (both,) = relations(lambda n: ((X + n) @ W).sum(-1).reshape(-1), site())[0]
    assert {(a.axis, a.loss_stride, a.loss_size, a.reach) for a in (both, *both.also)} == {
        (0, T, B, None),
        (1, 1, T, None),
    }


def test_a_prefix_moves_the_own_loss():
    def loss(n):
        x = jnp.concatenate([jnp.ones((B, 2, D)), X], 1) + n
        return (x[:, 2:] @ W).sum(-1)

    ((rows, tokens),) = relations(loss, site(B, T + 2, D))
    assert rows.reach is None and tokens.own == -2
    np.testing.assert_array_equal(tokens.reach, np.eye(T + 2, T, -2, dtype=bool))


def test_nothing_depends_on_an_unused_site_and_a_scalar_on_all():
    assert relations(lambda n: X.sum(-1) + 0 * n.sum(-1), site()) == [None]
    assert relations(lambda n: n.sum(), site()) == [()]


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


FEW = (
    "nnx",
    "scan",
    "lstm",
    "causal convolution",
    "images",
    "batch norm",
    "experts",
    "padded",
    "while",
    "cond",
    "padding",
)


@pytest.mark.parametrize("name", quickest(CASES, *FEW, "encoder", "flat", "masked"))
def test_no_dependence_is_missed(name):
    function, shapes, exact = CASES[name]
    sites = [site(*shape) for shape in shapes]
    losses = jax.eval_shape(function, *sites).shape
    for shape, found, is_ in zip(shapes, relations(function, *sites), true(function, sites), strict=True):
        says = claimed(found, shape, losses)
        assert not (is_ & ~says).any(), found
        if exact:  # features do not count: only whether any of them reaches the loss
            ties = {a.axis for a in found if isinstance(a, Along)}
            others = tuple(a for a in range(len(shape)) if a not in ties)
            np.testing.assert_array_equal(says.any(others), is_.any(others), str(found))


def test_what_cannot_be_told_depends_on_all():
    (found,) = relations(callback, site())
    assert all(a.reach.all() for a in found)  # with its own beside, by the sum
    (found,) = relations(branched, site())
    assert claimed(found, (B, T, D), (B, T))[0, 0, 0].all()  # what decides
    (found,) = relations(stored, site())
    assert found == (None, None)


def stored(n):
    kept = jax.new_ref(X)
    kept[...] = X + n
    return kept[...].sum(-1)
