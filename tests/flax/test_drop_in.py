"""`eggroll.nnx` where `nnx.value_and_grad` and `nnx.grad` stood, feeding an unchanged `nnx.Optimizer`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll.nnx
from tests.flax.truth import ROUNDING, assert_close, normal

X, Y = normal(0, 8, 4), normal(1, 8, 2)
KEY = jax.random.key(0)
SETTINGS = {"population": 6, "sigma": 0.1, "fallback": "error"}


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.LoRALinear(4, 5, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.body(x)))


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@pytest.fixture
def model() -> Network:
    model = Network(nnx.Rngs(0))
    model.body.lora.lora_b[...] = normal(2, 2, 5)
    return model


FILTERS = {
    "everything": nnx.Param,
    "adapters": nnx.LoRAParam,
    "kernels": nnx.All(nnx.Param, lambda path, value: "kernel" in path),
    "all but the head": nnx.All(nnx.Param, nnx.Not(nnx.PathContains("head"))),
    "several": (nnx.LoRAParam, nnx.PathContains("bias")),
}


@pytest.mark.first(1)
@pytest.mark.parametrize("wrt", FILTERS.values(), ids=list(FILTERS))
def test_gradients_are_a_state_like_that_of_nnx(model, wrt):
    value, grads = eggroll.nnx.value_and_grad(loss_fn, wrt=wrt, **SETTINGS)(model, X, Y, key=KEY)
    same = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, wrt))(model, X, Y)
    assert jax.tree.structure(grads) == jax.tree.structure(same[1])
    assert type(grads) is type(same[1])
    for ours, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(same[1]), strict=True):
        assert (ours.shape, ours.dtype) == (exact.shape, exact.dtype)
    assert (value.shape, value.dtype) == (same[0].shape, same[0].dtype)


@pytest.mark.parametrize("wrt", [nnx.LoRAParam, FILTERS["kernels"]], ids=["adapters", "kernels"])
def test_an_unchanged_optimizer_moves_what_the_filter_selects_and_nothing_else(model, wrt):
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=wrt)
    _, grads = eggroll.nnx.value_and_grad(loss_fn, wrt=wrt, **SETTINGS)(model, X, Y, key=KEY)
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    names = {path for path, _ in nnx.to_flat_state(nnx.state(model, wrt))}
    assert names
    for (path, old), (_, new) in zip(
        nnx.to_flat_state(before), nnx.to_flat_state(nnx.state(model, nnx.Param)), strict=True
    ):
        assert bool((old[...] != new[...]).any()) == (path in names), path


def test_grad_is_value_and_grad_without_the_value(model):
    def both(model, x, y):
        return loss_fn(model, x, y), {"mean": model(x).mean()}

    options = {**SETTINGS, "wrt": FILTERS["kernels"]}
    (value, aux), grads = eggroll.nnx.value_and_grad(both, has_aux=True, **options)(model, X, Y, key=KEY)
    assert value.shape == aux["mean"].shape == ()
    only, aux_again = eggroll.nnx.grad(both, has_aux=True, **options)(model, X, Y, key=KEY)
    plain = eggroll.nnx.grad(loss_fn, **options)(model, X, Y, key=KEY)
    assert_close(only, grads, 10 * ROUNDING)
    assert_close(plain, grads, 10 * ROUNDING)
    assert_close(aux_again, aux)


def test_inside_nnx_jit_it_is_the_same(model):
    estimate = eggroll.nnx.value_and_grad(loss_fn, wrt=FILTERS["kernels"], **SETTINGS)
    want = estimate(model, X, Y, key=KEY)

    @nnx.jit
    def compiled(model, x, y, key):
        return estimate(model, x, y, key=key)

    # Differences of losses are divided by sigma: rounding grows by as much.
    assert_close(compiled(model, X, Y, KEY), want, 10 * ROUNDING)


def test_keywords_and_flags_reach_the_loss_as_they_are(model):
    def loss(model, x, *, targets, power, training=False):
        assert training is True and isinstance(power, int)
        return jnp.mean(jnp.abs(model(x) - targets) ** power)

    options = {**SETTINGS, "wrt": FILTERS["kernels"]}
    got = eggroll.nnx.value_and_grad(loss, **options)(model, X, targets=Y, power=2, training=True, key=KEY)
    want = eggroll.nnx.value_and_grad(loss_fn, **options)(model, X, Y, key=KEY)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)


def test_one_row_of_an_argument_for_every_member(model):
    def loss(model, x, y, scale):
        return loss_fn(model, x, y) * 0.0 + scale

    estimate = eggroll.nnx.value_and_grad(loss, in_axes=(None, None, 0), wrt=FILTERS["kernels"], **SETTINGS)
    value, _ = estimate(model, X, Y, jnp.arange(6.0), key=KEY)
    assert value == 2.5


def test_another_model_as_an_argument_is_not_perturbed(model):
    def distance(model, teacher, x):
        return jnp.mean((model(x) - teacher(x)) ** 2), teacher(x)

    teacher = Network(nnx.Rngs(1))
    estimate = eggroll.nnx.value_and_grad(distance, has_aux=True, wrt=FILTERS["kernels"], **SETTINGS)
    (_, seen), grads = estimate(model, teacher, X, key=KEY)
    np.testing.assert_allclose(seen, teacher(X), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(nnx.state(model, FILTERS["kernels"]))


def test_a_non_module_is_refused():
    with pytest.raises(TypeError, match=r"got dict as the model; an NNX module is required.*eggroll\.value_and_grad"):
        eggroll.nnx.grad(loss_fn, **SETTINGS)({"w": X}, X, Y, key=KEY)


def test_a_filter_that_selects_nothing_is_refused(model):
    with pytest.raises(ValueError, match=r"wrt=.*BatchStat.*selects no variable"):
        eggroll.nnx.grad(loss_fn, wrt=nnx.BatchStat, **SETTINGS)(model, X, Y, key=KEY)


def test_a_key_is_required(model):
    with pytest.raises(TypeError, match="key"):
        eggroll.nnx.grad(loss_fn, **SETTINGS)(model, X, Y)
    with pytest.raises(TypeError, match="key is required"):
        eggroll.nnx.grad(loss_fn, **SETTINGS)(model, X, Y, key=0)
