"""Several NNX models at once, as `nnx.value_and_grad` takes them: the same numbers as of one module that holds them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eggroll
import eggroll.nnx

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(3), (8, 3))
SETTINGS = {"population": 32, "sigma": 0.05}


class Encoder(nnx.Module):
    """A layer with batch statistics and dropout."""

    def __init__(self):
        self.layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=nnx.Rngs(1))
        self.dropout = nnx.Dropout(0.3, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.dropout(self.norm(self.layer(x)))


class Both(nnx.Module):
    def __init__(self, a, b):
        self.a, self.b = a, b


def pair():
    return Encoder(), nnx.Sequential(nnx.Linear(4, 2, rngs=nnx.Rngs(1)), nnx.BatchNorm(2, rngs=nnx.Rngs(2)))


def loss(a, b, x):
    return ((b(a(x)) - 1) ** 2).mean()


def of_both(m, x):
    return loss(m.a, m.b, x)


def of_dict(m, x):
    return loss(m["a"], m["b"], x)


def of_tuple(m, x):
    return loss(*m, x)


def same(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        x, y = (jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y))
        np.testing.assert_array_equal(x, y)


def test_a_dictionary_is_as_the_module_that_holds_them():
    one, several = Both(*pair()), dict(zip("ab", pair(), strict=True))
    value, grads = eggroll.nnx.value_and_grad(of_both, **SETTINGS)(one, X, key=KEY)
    got, each = eggroll.nnx.value_and_grad(of_dict, **SETTINGS)(several, X, key=KEY)
    assert set(each) == {"a", "b"}
    same((got, each["a"], each["b"]), (value, grads["a"], grads["b"]))
    same((nnx.state(several["a"]), nnx.state(several["b"])), (nnx.state(one.a), nnx.state(one.b)))
    assert np.abs(several["a"].norm.mean[...]).max() > 0


@pytest.mark.slow
def test_a_run_of_a_dictionary_is_as_of_the_module_that_holds_them():
    es = eggroll.nnx.ES(**SETTINGS)
    one, several = Both(*pair()), dict(zip("ab", pair(), strict=True))
    left, _ = es.step(es.init(one, KEY), lambda m, x: -of_both(m, x), X)
    right, _ = es.step(es.init(several, KEY), lambda m, x: -of_dict(m, x), X)
    found = es.model(right)
    same((nnx.state(found["a"]), nnx.state(found["b"])), (nnx.state(es.model(left).a), nnx.state(es.model(left).b)))
    members = es.ask(right)
    told, _ = es.tell(right, members, members.apply(lambda m, x: -of_dict(m, x), X))
    assert np.abs(es.model(told)["a"].norm.mean[...] - found["a"].norm.mean[...]).max() > 0
    assert isinstance(members.materialize(3)["b"], nnx.Sequential)


@pytest.mark.slow
def test_a_tuple_a_list_and_argnums_are_alike_and_feed_an_optimizer():
    models = pair()
    value, grads = eggroll.nnx.value_and_grad(of_tuple, **SETTINGS)(models, X, key=KEY)
    by_number = pair()
    estimate = eggroll.nnx.value_and_grad(lambda x, a, b: loss(a, b, x), argnums=(1, -1), **SETTINGS)
    same(estimate(X, *by_number, key=KEY), (value, grads))
    same([nnx.state(m) for m in by_number], [nnx.state(m) for m in models])
    same(eggroll.nnx.grad(of_tuple, **SETTINGS)(list(pair()), X, key=KEY), list(grads))
    assert type(grads) is tuple
    assert jax.tree.structure(grads) == jax.tree.structure(nnx.grad(of_tuple)(models, X))
    optimizer, before = nnx.Optimizer(models, optax.sgd(0.1), wrt=nnx.Param), of_tuple(models, X)
    for key in jax.random.split(KEY, 15):
        optimizer.update(models, eggroll.nnx.grad(of_tuple, population=256, sigma=0.05)(models, X, key=key))
    assert of_tuple(models, X) < before


def test_one_of_several_arguments():
    a, b = pair()
    grads = eggroll.nnx.grad(loss, argnums=1, **SETTINGS)(a, b, X, key=KEY)
    assert jax.tree.structure(grads) == jax.tree.structure(nnx.state(b, nnx.Param))
    assert np.abs(a.norm.mean[...]).max() > 0  # the other one's statistics are carried along


def test_shared_parameters_are_the_first_models():
    a, b = Encoder(), Encoder()
    b.layer = a.layer
    grads = eggroll.nnx.grad(lambda m, x: (m[0](x) * m[1](x)).mean(), **SETTINGS)((a, b), X, key=KEY)
    assert "layer" in grads[0]
    assert "layer" not in grads[1]


@pytest.mark.parametrize(
    ("models", "held"), [((Encoder(), 3), "int"), ([], "nothing"), ({"a": None}, "NoneType"), ([{"a": X}], "ArrayImpl")]
)
def test_what_is_no_model_is_named(models, held):
    for call in (
        lambda: eggroll.nnx.grad(of_tuple, **SETTINGS)(models, X, key=KEY),
        lambda: eggroll.nnx.ES(**SETTINGS).init(models, KEY),
    ):
        with pytest.raises(
            TypeError, match=rf"got {type(models).__name__} as the model; .*such, which holds {held}\. "
        ):
            call()
