"""Noise on layers' outputs: exact where enumeration tells, else true in the mean, and the same everywhere."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree

import eggroll
import eggroll.nnx
from eggroll.strategy.activations.credit import credits
from eggroll.strategy.activations.streams import Streams
from eggroll.strategy.activations.values import Linear
from eggroll.strategy.activations.walk import Frame
from eggroll.strategy.dependence.relations import dependence
from eggroll.strategy.plan.sites import Site
from eggroll.training import fit
from eggroll.training.ledger.rebuilding import replay
from tests.quick import quickest
from tests.strategy.noisy_models import (
    KEY,
    SQUARE,
    X,
    batch_norm,
    convolutions,
    enumerated,
    framed,
    lstm,
    mixed,
    transformer,
    turns,
)
from tests.strategy.noisy_networks import LATER

ESTIMATE = partial(eggroll.value_and_grad, noise="activations")


@pytest.mark.parametrize("losses", ["rows", "scalar"])
def test_all_patterns_together_give_the_gradient_of_a_quadratic(monkeypatch, losses):
    """Two sites of two rows, float64: the estimate is `jax.grad` to rounding, however large sigma is."""

    def quadratic(p: Any, x: jax.Array) -> jax.Array:
        out = ((x @ p["w"] + p["b"]) @ p["v"] - 1.0) ** 2  # of noise of both layers, no more than its square
        return out.sum(1) if losses == "rows" else out.sum(1).mean()

    with jax.enable_x64(True):
        shapes = {"w": (3, 2), "b": (2,), "v": (2, 1)}
        p = {k: jax.random.normal(KEY, s, jnp.float64) for k, s in shapes.items()}
        x = jax.random.normal(KEY, (2, 3), jnp.float64)
        population = enumerated(monkeypatch, [(2, 2), (2, 1)])
        _, grads = ESTIMATE(quadratic, population=population, sigma=0.7)(p, x, key=KEY)
        exact = jax.grad(lambda p: quadratic(p, x).mean())(p)
        for name in p:
            np.testing.assert_allclose(grads[name], exact[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("units", [4, 32])
@pytest.mark.parametrize("shapes", [[(2, 3, 5), (2, 3, 70)], [(7,), (40,)]], ids=["rows", "one row"])
def test_noise_is_summed_as_it_was_drawn(units, shapes):
    """With a credit for each row, each unit or each number: `Σ cᵤ·εᵤ` of what members see, in NumPy."""
    sites = [Site((i,), (), "dot_general", "", shape, "float32", ()) for i, shape in enumerate(shapes)]
    streams, who = Streams.of(KEY, sites, "rademacher", 2 * units), jnp.arange(units) + 3
    drawn = np.random.default_rng(0)
    for site, kept in itertools.product(sites, (0, 1, 2, 3)):
        at = Linear(jnp.zeros(site.shape), lambda _: None, frozenset(), where=site.where), Frame([], []), who
        credit = drawn.normal(size=(units, *(n if i < kept else 1 for i, n in enumerate(site.shape))))
        found = streams.total(*at, jnp.asarray(credit, jnp.float32))
        np.testing.assert_allclose(found, (credit * np.asarray(streams.noise(*at))).sum(0), rtol=1e-4, atol=1e-4)


def test_as_many_pairs_as_a_row_has_numbers_tell_the_gradient():
    """Noise is orthogonal within a row: of 13 numbers at two sites 16 pairs tell each apart, at every row at once."""

    def losses(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jnp.tanh(x @ p["w"] + p["b"]).reshape(7, 2, 5) @ p["v"]), (1, 2))

    with jax.enable_x64(True):
        shapes = {"w": (4, 10), "b": (10,), "v": (5, 1)}
        p = {k: jax.random.normal(KEY, s, jnp.float64) for k, s in shapes.items()}
        x = jax.random.normal(KEY, (7, 4), jnp.float64)
        exact = jax.grad(lambda p: losses(p, x).mean())(p)
        _, grads = ESTIMATE(losses, population=32, sigma=1e-4, chunk=2)(p, x, key=KEY)
        for name in p:
            np.testing.assert_allclose(grads[name], exact[name], rtol=1e-5, atol=1e-6)


def test_attention_is_credited_through_its_output():
    """Queries, keys and values have one site: 4 numbers a row, of which 4 pairs tell all three gradients."""

    def losses(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = x[:, 0] @ p["q"], x @ p["k"], x @ p["v"] + p["b"]
        looked = jax.nn.softmax(jnp.einsum("bd,btd->bt", q, jnp.tanh(k)))
        return jnp.sum(jnp.sin(jnp.einsum("bt,btd->db", looked, v).T), 1)

    with jax.enable_x64(True):
        shapes = {"q": (3, 4), "k": (3, 4), "v": (3, 4), "b": (4,)}
        p = {k: jax.random.normal(KEY, s, jnp.float64) for k, s in shapes.items()}
        x = jax.random.normal(KEY, (5, 6, 3), jnp.float64)
        exact = jax.grad(lambda p: losses(p, x).mean())(p)
        _, grads = ESTIMATE(losses, population=8, sigma=1e-4)(p, x, key=KEY)
        for name in p:
            np.testing.assert_allclose(grads[name], exact[name], rtol=1e-5, atol=1e-6)


def test_of_a_linear_function_one_pair_is_enough():
    c = jnp.arange(12.0).reshape(3, 4)
    grads = ESTIMATE(lambda p: jnp.sum(p * c), population=2, sigma=0.1)(jnp.zeros((3, 4)), key=KEY)[1]
    np.testing.assert_allclose(grads, c, rtol=1e-5)


NETWORKS = [transformer, mixed, framed, lstm, convolutions, batch_norm]


@pytest.mark.parametrize("network", quickest(NETWORKS, mixed))
@pytest.mark.filterwarnings("ignore::eggroll.DenseFallbackWarning", "ignore::DeprecationWarning")
def test_the_mean_of_estimates_is_the_gradient(network):
    """Along the gradient and 12 random directions, in standard errors of 40 estimates.

    Of Student's t with 39 degrees of freedom, the largest of 13 is beyond 5 in one of 6,000 tests.
    """
    losses, params, args = network()
    plain = partial(turns, False) if network is mixed else losses
    exact = ravel_pytree(jax.grad(lambda p: jnp.mean(plain(p, *args)))(params))[0]
    rules = [("w", "low_rank")] if network is framed else []
    gradient = ESTIMATE(losses, population=128, sigma=0.01, rules=rules)
    estimate = jax.jit(lambda key: ravel_pytree(gradient(params, *args, key=key)[1])[0])
    found = np.array([estimate(key) for key in jax.random.split(KEY, 40)])
    directions = np.random.default_rng(0).normal(size=(13, exact.size))
    directions[0] = exact
    along = found @ directions.T
    off = (along.mean(0) - directions @ np.asarray(exact)) / (along.std(0, ddof=1) / 40**0.5)
    assert np.abs(off).max() < 5, off
    cosine = found[0] @ exact / np.linalg.norm(found[0]) / np.linalg.norm(exact)
    assert cosine > {transformer: 0.2, lstm: 0.5, mixed: 0.6}.get(network, 0.1)


@pytest.mark.parametrize(("credit", "wanted"), [("dependent", LATER), ("own", np.eye(6)), (0.5, None)])
def test_noise_is_credited_with_the_losses_that_depend_on_it(credit, wanted):
    """A site of `[B·T, d]` in a model whose losses `[B, T]` depend on this token and earlier ones."""
    batch, tokens, dim = 3, 6, 4

    def losses(noise: jax.Array) -> jax.Array:
        return jnp.cumsum(jnp.tanh(noise).sum(1).reshape(batch, tokens), 1)

    traced = jax.make_jaxpr(losses)(jnp.zeros((batch * tokens, dim)))
    site = Site((0, 0), ("w",), "dot_general", "", (batch * tokens, dim), "float32")
    weights = np.random.default_rng(0).normal(size=(5, batch, tokens)).astype(np.float32)
    discount = credit if isinstance(credit, float) else 1.0
    name = "dependent" if isinstance(credit, float) else credit
    ((_, found),) = credits([site], dependence(traced, [0]), jnp.asarray(weights), name, discount).items()
    if wanted is None:
        wanted = LATER * discount ** np.abs(np.arange(tokens)[:, None] - np.arange(tokens))
    right = np.einsum("ubt,it->ubi", weights, wanted).reshape(5, batch * tokens, 1)
    np.testing.assert_allclose(np.broadcast_to(found, right.shape), right, rtol=1e-5)


def losses_of(p: Any, x: jax.Array) -> jax.Array:
    return jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) - 1) ** 2, 1)


@pytest.mark.parametrize("noise", ["weights", "activations"])
def test_rows_that_end_apart_and_a_loss_that_is_none(noise):
    """A loop that each row leaves at its own turn, without noise to speak of; and a row whose loss is never finite."""

    def ends(p: Any, x: jax.Array, turns: jax.Array) -> jax.Array:
        step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"] + p["b"]))  # noqa: E731
        return jax.vmap(lambda r, n: lax.while_loop(lambda c: c[0] < n, step, (0, r))[1])(x, turns)

    es, turns = eggroll.ES(population=4, sigma=1e-6, noise=noise), jnp.array([1, 3, 0])
    state = es.init(SQUARE, KEY)
    seen = es.ask(state).apply(ends, X, turns)
    np.testing.assert_allclose(seen, jnp.broadcast_to(ends(SQUARE, X, turns), seen.shape), atol=1e-5)
    if noise == "activations":
        fitness = lambda p, x, n: (-(ends(p, x, n) ** 2).sum(1)).at[0].set(jnp.nan)  # noqa: E731
        new, metrics = es.step(state, fitness, X, turns)
        assert (metrics["nonfinite"], bool(metrics["equal_fitness"])) == (0, False)
        assert np.isfinite(new.params["w"]).all() and np.isfinite(metrics["fitness_mean"])


def test_told_as_stepped_and_resumed_and_replayed_bit_for_bit(tmp_path):
    def made() -> Any:
        return eggroll.ES(population=8, sigma=0.1, optimizer=optax.sgd(0.1), noise="activations")

    def fitness(p: Any, x: jax.Array) -> jax.Array:
        return -losses_of(p, x)

    def data(generation: int) -> Any:
        return X + generation

    es = made()
    state = es.init(SQUARE, KEY)
    members = es.ask(state)
    told, _ = es.tell(state, members, np.asarray(members.apply(fitness, X)))
    stepped, metrics = es.step(state, fitness, X)
    assert (metrics["fitness"].shape, metrics["weights"].shape) == ((8,), (8, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), told.params, stepped.params)

    fit(made(), state, fitness, data, generations=2, folder=tmp_path / "run")
    whole = fit(made(), state, fitness, data, generations=4).state
    resumed = fit(made(), state, fitness, data, generations=4, folder=tmp_path / "run", resume=True).state
    ledger, options = tmp_path / "run" / "ledger.bin", {"optimizer": optax.sgd(0.1)}
    again = replay(SQUARE, ledger, fitness=fitness, data=data, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    with pytest.raises(eggroll.training.RunError, match="give replay its fitness and data"):
        replay(SQUARE, ledger, **options)


def test_a_model_with_statistics_learns_and_explain_names_its_sites():
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(1)), nnx.relu)
    es = eggroll.nnx.ES(population=32, sigma=0.1, optimizer=optax.adam(0.05), noise="activations")

    def fitness(model: Any, x: jax.Array) -> jax.Array:
        return -((model(x)[:, :4] - x) ** 2).sum(1)

    state = es.init(model, KEY)
    x = jax.random.normal(KEY, (16, 4))
    first = es.step(state, fitness, x)[1]["fitness_mean"]
    for _ in range(40):
        state, metrics = es.step(state, fitness, x)
    assert metrics["fitness_mean"] > 0.7 * first  # of which the outputs cannot be negative
    assert not np.allclose(es.model(state).layers[1].mean[...], 0)
    found = eggroll.nnx.explain(fitness, model, x, noise="activations")
    assert [(s.paths, s.shape) for s in found.plan.sites] == [
        (("layers/0/bias", "layers/0/kernel"), (16, 8)),
        (("layers/1/scale",), (1, 8)),  # Flax scales what the batch's deviation is, and then the rows by that
        (("layers/1/bias",), (16, 8)),
    ]
    assert found.per_row[0] == found.per_row[2] == 8
    text = str(eggroll.explain(partial(turns, True), mixed()[1], X, noise="activations", rules=[("b", "weights")]))
    assert "weight noise: 'scale2', for `sin` at" in text
    assert "weight noise: 'b', for a rule" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eggroll.ES(noise="outputs"), r"got noise='outputs'; one of 'weights', 'activations'"),
        (lambda: eggroll.ES(credit="own"), r'with noise="weights"'),
        (lambda: eggroll.ES(noise="activations", discount=2.0), r"got discount=2.0; a number from 0"),
        (lambda: eggroll.ES(noise="activations", credit="own", discount=0.5), "give one"),
        (lambda: asked()[0].materialize(0), "got no function"),
        (lambda: asked(losses_of)[0].materialize(0), "have no weights of their own"),
        (lambda: asked(losses_of, np.zeros((8, 2))), r"got fitness of shape \(2,\) for each member, from an output"),
        (lambda: asked(lambda p, x: losses_of(p, x)[:0], step=True), "returned no fitness"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def asked(fun: Any = None, fitness: Any = None, step: bool = False) -> Any:
    es = eggroll.ES(population=8, sigma=0.1, noise="activations")
    members = es.ask(state := es.init(SQUARE, KEY))
    if step:
        return es.step(state, fun, X)
    if fun is not None:
        members.apply(fun, X)
    return (members, None) if fitness is None else es.tell(state, members, fitness)


def test_a_loss_that_all_rows_reach_is_credited_as_the_sum_of_them():
    """Keys reach every token's loss: so what they receive is the same as of one loss for all, to rounding.

    With 64 members XLA does not rewrite the product with ones that it gets wrong; with 512 it does.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    params = {name: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for name in ("query", "key")}

    def losses(p, x):
        query, key = (jnp.sin(x @ p[name]) for name in ("query", "key"))
        return jnp.sum(jnp.einsum("btd,bsd->bts", query, key) ** 2, -1)

    found = [
        eggroll.grad(f, population=512, sigma=0.03, noise="activations")(params, x, key=KEY)["key"]
        for f in (losses, lambda p, x: losses(p, x).mean(-1))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3 * float(jnp.abs(found[1]).max()))
