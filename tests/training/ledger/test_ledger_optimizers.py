"""Named optimizers are optax's own, and come back from JSON the same."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.strategy.update.optimizer import check_optimizer
from eggroll.training.errors import RunError
from eggroll.training.optimizers import OPTIMIZERS, PARTS, SCHEDULES, chain, from_spec, named, schedule, spec_of

pytestmark = pytest.mark.optimised  # bits, as users get them

PARAMS = {"w": jnp.asarray([[0.5, -2.0], [3.0, 0.25]]), "b": jnp.asarray([1.0, -1.0])}


def updates(optimizer, steps=3):
    state, found = optimizer.init(PARAMS), []
    with jax.numpy_dtype_promotion("standard"):
        for i in range(steps):
            gradient = jax.tree.map(lambda p, i=i: jnp.sin(p * (i + 1)), PARAMS)
            change, state = check_optimizer(optimizer).update(gradient, state, PARAMS, value=jnp.float32(1.0))
            found += jax.tree.leaves(change)
    return [np.asarray(x) for x in found]


COSINE = {"init_value": 0.1, "decay_steps": 5, "alpha": 0.1}
PAIRS = [
    (named("sgd", learning_rate=0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    (named("adamw", learning_rate=np.float32(0.25), weight_decay=0.1), optax.adamw(0.25, weight_decay=0.1)),
    (
        named("adam", learning_rate=schedule("cosine_decay_schedule", **COSINE), b2=0.99),
        optax.adam(optax.cosine_decay_schedule(**COSINE), b2=0.99),
    ),
    (
        chain(named("clip_by_global_norm", max_norm=0.5), named("rmsprop", learning_rate=0.01)),
        optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(0.01)),
    ),
    (
        named(
            "sgd",
            learning_rate=schedule(
                "join_schedules",
                schedules=[
                    schedule("linear_schedule", init_value=0.0, end_value=1.0, transition_steps=2),
                    schedule("piecewise_constant_schedule", init_value=1.0, boundaries_and_scales={1: 0.5}),
                ],
                boundaries=[1],
            ),
        ),
        optax.sgd(
            optax.join_schedules(
                [optax.linear_schedule(0.0, 1.0, 2), optax.piecewise_constant_schedule(1.0, {1: 0.5})], [1]
            )
        ),
    ),
    (
        named("sgd", learning_rate=schedule("inverse_sqrt_schedule", init_value=0.5) * 0.5),
        optax.sgd(lambda count: 0.25 / jnp.sqrt(1.0 + count)),
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=["sgd", "adamw", "adam", "chain", "schedules", "falling"])
def test_named_is_optax_and_comes_back_from_json(pair):
    mine, theirs = pair
    again = from_spec(json.loads(json.dumps(mine.spec)))
    assert again.spec == mine.spec and repr(again) == repr(mine)
    for a, b, c in zip(updates(mine), updates(theirs), updates(again), strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()


def test_an_es_keeps_the_description():
    optimizer = named("adam", learning_rate=0.1)
    assert spec_of(check_optimizer(optimizer)) == optimizer.spec
    assert spec_of(optax.adam(0.1)) is None
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)


def test_every_name_is_optax_s_own():
    for name in OPTIMIZERS | PARTS | SCHEDULES:
        assert callable(getattr(optax, name)), name


@pytest.mark.parametrize(
    "name", ["Adam", "apply_if_finite", "inject_hyperparams", "__doc__", "os.system", "tree", 3, None]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="adam"):
        named(name)
    with pytest.raises(RunError, match="description of an optimizer"):
        from_spec({"name": name, "arguments": {}})
    with pytest.raises(ValueError, match="cosine_decay_schedule"):
        schedule(name)


@pytest.mark.parametrize(
    "spec",
    [
        None,
        3,
        {},
        {"name": "adam"},
        {"name": "chain"},
        {"name": "chain", "of": [{}]},
        {"name": "adam", "arguments": {"speed": 1}},
        {"name": "adam", "arguments": {"learning_rate": {"schedule": "exec", "arguments": {}}}},
        {"name": "adam", "arguments": {"learning_rate": {"what": 1}}},
        {"name": "adam", "arguments": {"learning_rate": {"pairs": 1}}},
    ],
)
def test_descriptions_of_nothing_are_refused(spec):
    with pytest.raises(RunError, match="description of an optimizer"):
        from_spec(spec)


def test_arguments_that_json_cannot_hold_are_refused():
    for wrong in (lambda count: 0.1, jnp.ones(3), {"a": 1.0}, optax.linear_schedule(0, 1, 2)):
        with pytest.raises(TypeError, match="learning_rate"):
            named("adam", learning_rate=wrong)
    with pytest.raises(ValueError, match="finite"):
        named("adam", learning_rate=float("nan"))
    with pytest.raises(TypeError, match="chain"):
        chain(optax.adam(0.1))
