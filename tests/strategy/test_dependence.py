"""Which losses depend on which entries of a site: never fewer than move, and exactly these where it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from eggroll.strategy.dependence.relations import Along, Relation, dependence
from tests.quick import quickest
from tests.strategy.noisy_networks import (
    ATTENTION,
    CASES,
    KEY,
    LATER,
    B,
    D,
    T,
    W,
    X,
    attend,
    branched,
    callback,
    encoder,
    lstm,
    scanned,
    site,
    stored,
    total,
)


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


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_scan_over_layers_keeps_the_mask(remat, inside):
    (found,) = relations(lambda n: scanned(n, remat, inside), site(2, B, T, D))
    rows, tokens = found
    assert (rows.axis, rows.reach, tokens.axis, tokens.own) == (1, None, 2, 0)
    np.testing.assert_array_equal(tokens.reach, LATER)


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
