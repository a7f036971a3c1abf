"""What a function or an optimizer computes is told apart from what another does, alike in every process."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.training.folder.described import described, schedule_values
from eggroll.training.folder.settings import check_same, differences
from eggroll.training.optimizers import named

ROOT = Path(__file__).parents[3]
SCALE = 2.0


def scaled(scale):
    return lambda fitness: fitness * scale


def reads_a_global(fitness):
    return fitness * SCALE


class Squared:
    def __init__(self, power):
        self.power = power

    def __call__(self, fitness):
        return fitness**self.power

    def method(self, fitness):
        return fitness


def cosine(steps=100):
    return optax.cosine_decay_schedule(0.1, steps)


SAME = {
    "lambda": lambda: scaled(2.0),
    "numpy captured": lambda: scaled(np.arange(100.0)),
    "jax captured": lambda: scaled(jnp.arange(100.0)),
    "object": lambda: Squared(2),
    "method": lambda: Squared(2).method,
    "partial": lambda: functools.partial(jnp.clip, min=0),
    "jit": lambda: jax.jit(reads_a_global),
    "adam": lambda: optax.adam(cosine()),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "muon": lambda: optax.contrib.muon(0.1),
    "hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=cosine()),
    "masked": lambda: optax.masked(optax.sgd(0.1), {"a": True, "b": False}),
    "set": lambda: scaled({"z", "a", "b", "c"}),
}


def all_of_them():
    return json.dumps({name: described(make()) for name, make in SAME.items()}, sort_keys=True)


def test_the_same_made_twice_is_the_same():
    assert all_of_them() == all_of_them()


def test_other_processes_agree():
    code = "from tests.training.folder.test_described import all_of_them; print(all_of_them())"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == all_of_them()


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (scaled(1.0), scaled(2.0), "scale: 1.0 → 2.0"),
        (scaled(jnp.zeros(3)), scaled(jnp.ones(3)), "scale[0]: 0.0 → 1.0"),
        (scaled(jnp.zeros(30)), scaled(jnp.ones(30)), 'scale: "float32[30]'),
        (Squared(2), Squared(3), "power: 2 → 3"),
        (Squared(2).method, Squared(3).method, "power: 2 → 3"),
        (lambda f: f + 1, lambda f: f + 2, "code: "),
        (lambda f: jnp.tanh(f), lambda f: jnp.sin(f), "code: "),
        (optax.adam(0.1), optax.adam(0.1, b1=0.8), "setting optax.scale_by_adam.b1: 0.9 → 0.8"),
        (optax.adam(0.1), optax.adam(0.2), "0.1 → "),
        (optax.adam(cosine()), optax.adam(cosine(50)), "decay_steps: 100 → 50"),
        (optax.adagrad(0.1), optax.adagrad(0.1, initial_accumulator_value=0.3), "initial_accumulator_value: 0.1 → 0.3"),
        (optax.sgd(0.1), optax.adam(0.1), "optax."),
        (optax.adam(0.1), optax.chain(optax.clip(1.0), optax.adam(0.1)), "optax.clip"),
        (named("adam", learning_rate=0.1), named("adam", learning_rate=0.2), "setting.learning_rate: 0.1 → 0.2"),
        (named("adam", learning_rate=0.1), named("sgd", learning_rate=0.1), "sgd(learning_rate=0.1)"),
        (optax.masked(optax.sgd(0.1), {"a": True}), optax.masked(optax.sgd(0.1), {"a": False}), "mask.a: true → false"),
    ],
    ids=[str(i) for i in range(16)],
)
def test_a_change_is_told(one, other, told):
    before, now = ({"setting": json.loads(json.dumps(described(each)))} for each in (one, other))
    assert not differences(before, before)
    lines = differences(before, now)
    assert any(told in line for line in lines), lines
    assert all(len(line) < 300 for line in lines)


def test_a_global_that_changes_is_seen(monkeypatch):
    before = described(reads_a_global)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    (line,) = differences({"shaping": before}, {"shaping": described(reads_a_global)})
    assert line.endswith("reads_a_global.SCALE: 2.0 → 3.0")


def test_what_holds_itself_and_what_is_long_comes_to_an_end():
    knot = {}
    knot["self"] = knot
    assert described(scaled(knot)) == described(scaled(knot))
    long = described(scaled([f"{i} of many" for i in range(10_000)]))
    assert len(json.dumps(long)) < 200
    assert long != described(scaled([f"{i + 1} of many" for i in range(10_000)]))


def test_schedules_alike_at_first_are_told_apart():
    values = [schedule_values(cosine(steps)) for steps in (100, 200)]
    assert values[0]["0"] == values[1]["0"] == pytest.approx(0.1)
    assert values[0]["10"] != values[1]["10"]
    json.dumps(schedule_values(lambda count: jnp.inf), allow_nan=False)


def test_other_versions_compare_values_alone():
    def config(optimizer, sigma):
        return {
            "strategy": {"optimizer": described(optimizer), "sigma": {"schedule": described(sigma), **values(sigma)}}
        }

    def values(sigma):
        return {"values": schedule_values(sigma)}

    before, now = config(optax.adam(0.1), cosine()), config(optax.adam(0.2), lambda count: cosine()(count))
    assert check_same(before, now, force=True, code=False) == []
    assert check_same(before, now, force=True)
    later = config(optax.adam(0.1), cosine(7))
    assert any("values.10: " in line for line in check_same(before, later, force=True, code=False))


def test_what_an_older_version_could_not_describe_is_taken():
    old = {"optimizer": None, "shaping": "a function", "sigma": "schedule, 0.1 at first"}
    now = {"optimizer": described(optax.sgd(0.1)), "shaping": described(scaled(1.0)), "sigma": {"values": {}}}
    assert differences(old, now) == []
