"""`value_and_grad` and `grad` in the place of their namesakes in JAX."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from tests.strategy.common import (
    KEY,
    X,
    Y,
    assert_close,
    assert_same_bits,
    centred,
    dense_of,
    descent,
    loss,
    numpy_loss,
    params,
    row,
)

POPULATION, SIGMA = 8, 0.1


@functools.cache
def estimator(population=POPULATION, **options):
    return eggroll.value_and_grad(loss, population=population, sigma=SIGMA, **options)


@functools.cache
def members(antithetic=True):
    plan = eggroll.explain(loss, params(), X, Y).plan
    return dense_of(plan, params(), KEY, POPULATION, SIGMA, antithetic=antithetic)


def losses(antithetic=True):
    return np.array([numpy_loss(row(members(antithetic), i), X, Y) for i in range(POPULATION)])


@pytest.mark.parametrize("antithetic", [True, False])
def test_value_is_the_mean_loss_and_grads_the_weighted_noise(antithetic):
    value, grads = estimator(antithetic=antithetic)(params(), X, Y, key=KEY)
    assert value.shape == () and value.dtype == jnp.float32
    assert float(value) == pytest.approx(losses(antithetic).mean(), rel=1e-5)
    weights = centred(-losses(antithetic), antithetic)
    assert_close(grads, descent(members(antithetic), params(), weights, SIGMA), 1e-4)


def shaped(name):
    f = -losses()
    if name == "zscore":
        return (f - f.mean()) / f.std()
    if name == "centered_rank":
        return np.argsort(np.argsort(f)) / (len(f) - 1) - 0.5
    return np.sign(np.stack([f[0::2] - f[1::2], f[1::2] - f[0::2]], 1).ravel()) if name == "sign" else f**3


@pytest.mark.first(2)
@pytest.mark.parametrize("shaping", ["zscore", "centered_rank", "sign", lambda f: f**3])
def test_shaping(shaping):
    _, grads = estimator(shaping=shaping)(params(), X, Y, key=KEY)
    assert_close(grads, descent(members(), params(), shaped(shaping), SIGMA), 1e-4)


def test_it_stands_where_jax_value_and_grad_stood():
    def with_aux(p, x, y, *, scale):
        return loss(p, x, y) * scale, {"error": x @ p["kernel"] - y}

    real = jax.value_and_grad(with_aux, has_aux=True)(params(), X, Y, scale=jnp.float32(2.0))
    f = eggroll.value_and_grad(with_aux, has_aux=True, population=POPULATION, sigma=SIGMA)
    ours = f(params(), X, Y, scale=jnp.float32(2.0), key=KEY)
    assert jax.tree.structure(ours) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(real), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
    plain = estimator()(params(), X, Y, key=KEY)
    assert_close(jax.tree.map(lambda g: g / 2, ours[1]), plain[1], 1e-5)
    assert_close(ours[0][1]["error"], np.asarray(X) @ members()["kernel"].mean(0) - np.asarray(Y), 1e-4)


def test_grad_is_value_and_grad_without_the_value():
    options = {"population": POPULATION, "sigma": SIGMA}
    _, expected = estimator()(params(), X, Y, key=KEY)
    assert_same_bits(eggroll.grad(loss, **options)(params(), X, Y, key=KEY), expected)
    grads, aux = eggroll.grad(lambda p, x, y: (loss(p, x, y), p["bias"]), has_aux=True, **options)(
        params(), X, Y, key=KEY
    )
    assert_close(grads, expected, 1e-6)
    assert aux.shape == (3,)


def test_jit_vmap_over_keys_and_legacy_keys_agree():
    f, keys = estimator(), jax.random.split(KEY, 3)
    alone = [f(params(), X, Y, key=key) for key in keys]
    together = jax.jit(jax.vmap(lambda key: f(params(), X, Y, key=key)))(keys)
    assert_close(together, jax.tree.map(lambda *a: jnp.stack(a), *alone), 1e-5)
    assert_same_bits(f(params(), X, Y, key=jax.random.key_data(keys[1])), alone[1])
    assert not np.array_equal(alone[0][1]["kernel"], alone[1][1]["kernel"])


def test_leaves_that_are_not_arrays_reach_the_loss_as_they_are():
    seen = []

    def flagged(p, x, y, mode, *, power):
        seen.append((mode, power))
        return loss(p, x, y) ** power if mode == "power" else loss(p, x, y)

    f = eggroll.value_and_grad(flagged, population=POPULATION, sigma=SIGMA)
    f(params(), X, Y, "power", power=2, key=KEY)
    f(params(), X, Y, None, power=2, key=KEY)
    with pytest.warns(eggroll.RecompilationWarning, match=r"flagged.*third time, since this changed.*power \(2 -> 3\)"):
        f(params(), X, Y, "power", power=3, key=KEY)
    assert {*seen} == {("power", 2), (None, 2), ("power", 3)}


def test_it_feeds_any_optax_optimizer():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05))
    f = eggroll.value_and_grad(loss, population=64, sigma=0.05)
    p = params()
    opt_state = optimizer.init(p)

    @jax.jit
    def step(p, opt_state, key):
        value, grads = f(p, X, Y, key=key)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, opt_state, p)
        return optax.apply_updates(p, updates), opt_state, value

    values = []
    for key in jax.random.split(KEY, 60):
        p, opt_state, value = step(p, opt_state, key)
        values.append(float(value))
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_parameters_give_half_precision_gradients(dtype):
    def half_loss(p, x, y):
        return loss(p, x.astype(dtype), y.astype(dtype))

    p = params(dtype)
    value, grads = eggroll.value_and_grad(half_loss, population=256, sigma=SIGMA)(p, X, Y, key=KEY)
    assert value.dtype == dtype and all(g.dtype == dtype for g in jax.tree.leaves(grads))
    _, exact = estimator(256)(jax.tree.map(lambda a: a.astype(jnp.float32), p), X, Y, key=KEY)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        cosine = np.vdot(got, want) / np.linalg.norm(np.float32(got)) / np.linalg.norm(want)
        assert cosine > 0.99


def test_mean_of_many_half_precision_losses_neither_overflows_nor_rounds():
    def large(p):
        return (jnp.sum(p["w"]) * 0 + 100).astype(jnp.float16)

    value, _ = eggroll.value_and_grad(large, population=2000, sigma=0.1)({"w": jnp.zeros((2, 2))}, key=KEY)
    assert value.dtype == jnp.float16 and value == 100


def test_a_boolean_or_counting_loss_is_averaged():
    def wrong(p):
        return jnp.sum(p["w"]) > 0

    value, grads = eggroll.value_and_grad(wrong, population=64, sigma=0.5)({"w": jnp.zeros(3)}, key=KEY)
    assert value.dtype == jnp.float32 and float(value) == 0.5, "pairs are on opposite sides of zero"
    assert np.all(np.asarray(grads["w"]) > 0), "true counts as a loss of one"


def test_frozen_and_unused_parameters_have_zero_gradients():
    p = {**params(), "idle": jnp.ones((2, 2)), "steps": jnp.arange(3), "none": None, "empty": jnp.zeros((0, 2))}
    f = estimator(rules=(("bias|steps", "frozen"),))
    _, grads = f(p, X, Y, key=KEY)
    assert jax.tree.structure(grads) == jax.tree.structure(p)
    for name in ("bias", "idle", "steps", "empty"):
        assert grads[name].shape == p[name].shape and grads[name].dtype == p[name].dtype
        assert not np.any(np.asarray(grads[name]))
    assert np.all(np.asarray(grads["kernel"]) != 0)


def test_python_numbers_and_scalars_are_parameters_too():
    f = eggroll.value_and_grad(lambda p: (p["a"] - 3.0) ** 2 + p["b"][0], population=64, sigma=0.1)
    value, grads = f({"a": 1.0, "b": np.ones(1)}, key=KEY)
    assert float(value) == pytest.approx(5.0 + 0.01, rel=1e-4), "rademacher: (±σ)² on top"
    np.testing.assert_allclose(grads["b"].shape, (1,))
    assert grads["a"].dtype == jnp.float32 and grads["a"].shape == ()


def test_sigma_and_rank_from_numpy_and_jax():
    expected = estimator()(params(), X, Y, key=KEY)
    for sigma in (np.float64(SIGMA), jnp.float32(SIGMA)):
        f = eggroll.value_and_grad(loss, population=np.int64(POPULATION), sigma=sigma, rank=np.int64(1))
        assert_close(f(params(), X, Y, key=KEY), expected, 1e-5)


def test_sigma_may_be_traced():
    def run(sigma):
        return eggroll.value_and_grad(loss, population=POPULATION, sigma=sigma)(params(), X, Y, key=KEY)

    assert_close(jax.jit(run)(jnp.float32(SIGMA)), estimator()(params(), X, Y, key=KEY), 1e-5)


def test_lost_members_leave_value_and_gradient_finite():
    def sometimes(p, x, y):
        return jnp.where(p["bias"][0] > params()["bias"][0], jnp.inf, loss(p, x, y))

    f = eggroll.value_and_grad(sometimes, population=POPULATION, sigma=SIGMA, antithetic=False)
    value, grads = f(params(), X, Y, key=KEY)
    lost = members(False)["bias"][:, 0] > np.float64(params()["bias"][0])
    assert 0 < lost.sum() < POPULATION
    assert float(value) == pytest.approx(losses(False)[~lost].mean(), rel=1e-5)
    kept = jax.tree.map(lambda a: a[~lost], members(False))
    assert_close(grads, descent(kept, params(), centred(-losses(False)[~lost], False), SIGMA), 1e-4)
