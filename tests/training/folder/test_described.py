"""Functions of a run are told apart by what they compute, and by nothing else."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.training.errors import RunError
from eggroll.training.folder import described as module
from eggroll.training.folder.described import described
from eggroll.training.folder.settings import UNSEEN, VALUES, apart, check_same, compared
from eggroll.training.optimizers import named, schedule

ROOT = Path(__file__).parents[3]
PARAMS = {"b": jnp.zeros(5), "w": jnp.zeros((4, 5))}
MEMBERS = 8


def cosine(steps=100):
    return optax.cosine_decay_schedule(0.1, steps)


def linear(steps):
    return schedule("linear_schedule", init_value=0.1, end_value=0.01, transition_steps=steps)


def drop(at):
    return optax.piecewise_constant_schedule(0.1, {at: 0.1})


def by_name(**labels):
    return optax.multi_transform({"x": optax.sgd(0.1), "y": optax.sgd(0.2)}, labels)


def gathered(optimizer, every):
    return optax.MultiSteps(optimizer, every).gradient_transformation()


def ranks(fitness):
    return jnp.argsort(jnp.argsort(fitness)) / fitness.size - 0.5


def of(name, value):
    return json.loads(json.dumps(described(name, value, PARAMS, MEMBERS), allow_nan=False))


def told(name, one, other):
    return compared(name, of(name, one), of(name, other))


OPTIMIZERS = {
    "rate": (optax.sgd(0.1), optax.sgd(0.1001), "optimizer.values.b: "),
    "kind": (optax.sgd(0.1), optax.adam(0.1), "optimizer.values.b: "),
    "epsilon": (optax.adam(0.1), optax.adam(0.1, eps=1e-6), "optimizer.values.b: "),
    "b1": (optax.adam(0.1), optax.adam(0.1, b1=0.8), "optimizer.values.b: "),
    "b2": (optax.adam(0.1), optax.adam(0.1, b2=0.9991), "optimizer.values.b: "),
    "decay": (optax.adamw(0.1, weight_decay=0.0), optax.adamw(0.1, weight_decay=1e-4), "optimizer.values.b: "),
    "nesterov": (optax.sgd(0.1, 0.9), optax.sgd(0.1, 0.9, nesterov=True), "optimizer.values.b: "),
    "clip": (optax.sgd(0.1), optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(0.1)), "optimizer.values.b: "),
    "names": (by_name(b="x", w="y"), by_name(b="y", w="x"), "optimizer.values.b: "),
    "mask": (optax.sgd(0.1), optax.masked(optax.sgd(0.1), {"b": True, "w": False}), "optimizer.values.w: "),
    "a step far away": (optax.sgd(drop(1500)), optax.sgd(drop(2000)), "optimizer.values.update 1500: "),
    "gathering": (gathered(optax.sgd(0.1), 4), gathered(optax.sgd(0.1), 5), "optimizer.values.moved at: 3 7"),
    "inside": (gathered(optax.sgd(drop(20)), 16), gathered(optax.sgd(drop(30)), 16), "optimizer.values.update 20: "),
    "not a number": (optax.sgd(0.1), optax.chain(optax.zero_nans(), optax.sgd(0.1)), "values.not a number: nan → 0.0"),
    "arguments": (
        named("sgd", learning_rate=0.1),
        named("sgd", learning_rate=0.2),
        "optimizer.learning_rate: 0.1 → 0.2",
    ),
    "name": (named("sgd", learning_rate=0.1), named("lion", learning_rate=0.1), "sgd(learning_rate=0.1) → lion(learn"),
}
SHAPINGS = {
    "shift": (lambda f: f - f.mean(), lambda f: f - f.max(), "shaping.values.spread, 8 members: "),
    "ranks": (ranks, lambda f: f, "shaping: tests.ranks → tests.<lambda>"),
    "ties": (ranks, lambda f: (f[:, None] > f).mean(1) - 0.5, "shaping.values.ties, 8 members: "),
    "scale": (ranks, lambda f: 1.001 * ranks(f), "shaping.values.spread, 8 members: "),
    "order": (lambda f: f, lambda f: f[::-1], "shaping.values.spread, 8 members: "),
    "sign": (lambda f: f, lambda f: -f, "shaping.values.spread, 8 members: "),
    "far values": (lambda f: f, lambda f: jnp.minimum(f, 100), "shaping.values.large, 8 members: "),
    "square": (lambda f: f * f, lambda f: f * abs(f), "shaping.values.spread, 8 members: "),
    "given": ("zscore", ranks, 'shaping: "zscore" → tests.ranks'),
}
SCHEDULES = {
    "constant": (lambda g: 0.1, lambda g: 0.1001, "sigma.values.0: 0.1 → 0.1001"),
    "number": (0.1, cosine(), "sigma: 0.1 → optax.cosine_decay_schedule.schedule"),
    "alike at first": (cosine(100), cosine(200), "sigma.values.1: "),
    "a little slower": (cosine(1000), cosine(1001), "sigma.values."),
    "step": (drop(600), drop(601), "sigma.values.600: "),
    "step between": (drop(1610), drop(1640), "sigma.values.mean from 1024: "),
    "with Python's if": (lambda g: 0.1 if g < 5 else 0.2, lambda g: 0.1 if g < 6 else 0.2, "sigma.values.5: 0.2 → 0.1"),
    "a list": (lambda g: [0.1, 0.2][g], lambda g: [0.1, 0.2, 0.3][g], "sigma.values.2: IndexError → 0.3"),
    "infinite": (lambda g: 1.0 / g, lambda g: 1.0 / jnp.maximum(g, 1), "sigma.values.0: inf → 1.0"),
    "arguments": (linear(100), linear(50), "sigma.transition_steps: 100 → 50"),
}
APART = [
    *(pytest.param("optimizer", *case, id=f"optimizer {name}") for name, case in OPTIMIZERS.items()),
    *(pytest.param("shaping", *case, id=f"shaping {name}") for name, case in SHAPINGS.items()),
    *(pytest.param("sigma", *case, id=f"schedule {name}") for name, case in SCHEDULES.items()),
]


@pytest.mark.parametrize(("name", "one", "other", "line"), APART)
def test_what_computes_otherwise_is_told(name, one, other, line):
    lines = told(name, one, other)
    assert any(line in each for each in lines), lines
    assert all(len(each) < 200 for each in lines) and len(lines) <= 4, lines


def moved_elsewhere(tmp_path, source):
    """A function of a module that lies somewhere else, under another name."""
    (tmp_path / "borrowed.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("borrowed", tmp_path / "borrowed.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found.made


SHIFTED = (
    "import jax.numpy as jnp\ndef made(fitness):\n    # otherwise\n    return jnp.subtract(fitness, jnp.mean(fitness))"
)
SCHEDULED = (
    "import optax\nmade = lambda count: optax.cosine_decay_schedule(\n    init_value=0.1, decay_steps=100)(count)"
)
ADAM = Path(optax.sgd.__code__.co_filename).read_text(encoding="utf-8") + "\nmade = sgd(0.1, momentum=0.9)\n"
EQUAL = {
    "shaping elsewhere": ("shaping", lambda f: f - f.mean(), SHIFTED),
    "schedule elsewhere": ("sigma", cosine(), SCHEDULED),
    "optimizer of another copy of optax": ("optimizer", optax.sgd(0.1, momentum=0.9), ADAM),
    "lambda": ("shaping", lambda f: 2 * f + 1, lambda fitness: 1 + fitness + fitness),
    "partial": ("shaping", lambda f: jnp.clip(f, min=0), functools.partial(jnp.clip, min=0)),
    "jit": ("shaping", ranks, jax.jit(ranks)),
    "schedule by name": ("sigma", cosine(), schedule("cosine_decay_schedule", init_value=0.1, decay_steps=100)),
    "written out": ("optimizer", optax.sgd(0.1, 0.9), optax.chain(optax.trace(0.9), optax.scale(-0.1))),
    "mask of all": (
        "optimizer",
        optax.sgd(0.1),
        optax.masked(optax.sgd(0.1), lambda p: jax.tree.map(lambda _: True, p)),
    ),
    "label by function": (
        "optimizer",
        by_name(b="x", w="y"),
        optax.multi_transform({"x": optax.sgd(0.1), "y": optax.sgd(0.2)}, lambda p: {"b": "x", "w": "y"}),
    ),
    "a number of numpy": ("sigma", 0.25, np.float32(0.25)),
    "a number of jax": ("sigma", 0.25, jnp.float32(0.25)),
}


@pytest.mark.parametrize(("name", "one", "other"), EQUAL.values(), ids=EQUAL)
def test_what_computes_the_same_is_the_same(name, one, other, tmp_path):
    other = moved_elsewhere(tmp_path, other) if isinstance(other, str) else other
    assert told(name, one, other) == told(name, other, one) == []


def all_of_them():
    made = {"shaping": ranks, "optimizer": optax.adam(cosine()), "sigma": cosine()}
    return json.dumps({name: of(name, value) for name, value in made.items()}, sort_keys=True)


@pytest.mark.slow
def test_other_processes_agree():
    code = "from tests.training.folder.test_described import all_of_them; print(all_of_them())"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert compared("all", json.loads(done.stdout), json.loads(all_of_them())) == []


def test_rounding_is_no_difference():
    assert apart("0.1 1e-9, nan, inf", "0.100001 1e-9, nan, inf") is None
    assert apart("0.1, 1e-9", "0.1, 1.001e-9") == ("1e-9", "1.001e-9")
    assert apart("inf", "1.0") == ("inf", "1.0") and apart("1 2", "1 2, 3") == ("nothing", "3")
    assert apart(1e-12, 0.0, largest=0.1) is None and apart(1e-12, 0.0) == ("1e-12", "0.0")


def test_a_large_model_is_cut_and_its_names_stay(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 1000)
    large = {"b": jax.ShapeDtypeStruct((5,), np.float32), "w": jax.ShapeDtypeStruct((9, 10**6, 10**6), np.float32)}
    one, other = (
        described("optimizer", by_name(**labels), large, 8) for labels in ({"b": "x", "w": "y"}, {"b": "y", "w": "y"})
    )
    assert one[VALUES]["w"] == other[VALUES]["w"] and one[VALUES]["b"] != other[VALUES]["b"]


def test_what_cannot_be_tried_is_compared_by_name_and_said(caplog):
    def strict(fitness):
        raise NotImplementedError("elsewhere only")

    def other(fitness):
        raise NotImplementedError

    before = {"strategy": {"shaping": of("shaping", strict)}}
    assert "elsewhere only" in before["strategy"]["shaping"][UNSEEN]
    with caplog.at_level(logging.WARNING, "eggroll"):
        assert check_same(before, before, force=False) == []
    assert "the same shaping as far as names tell" in caplog.text and "elsewhere only" in caplog.text
    for name, now in (("other", other), ("ranks", ranks)):
        with pytest.raises(RunError, match=rf"shaping: tests.*strict, which cannot be tried .* → tests.*{name}"):
            check_same(before, {"strategy": {"shaping": of("shaping", now)}}, force=False)


def test_what_an_older_version_wrote_down_is_compared_by_name_and_said(caplog):
    code = {"function": "tests.ranks", "code": "fef2051640f1255d"}
    walk = {"init": {"function": "optax.chain.init_fn"}, "update": {"function": "optax.chain.update_fn"}}
    olds = [
        {"optimizer": walk, "shaping": code},
        {"optimizer": None, "shaping": "a function", "sigma": "schedule, 0.1 at"},
    ]
    now = {
        "strategy": {
            name: of(name, x) for name, x in (("optimizer", optax.sgd(1.0)), ("shaping", ranks), ("sigma", cosine()))
        }
    }
    olds[0]["sigma"] = {
        "schedule": {"function": "optax.schedule", "steps": 100},
        "values": {"0": 0.1, "10": 0.0975528255},
    }
    for old in olds:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "eggroll"):
            assert check_same({"strategy": old}, now, force=False) == []
        assert "the same optimizer as far" in caplog.text and "the same shaping as far" in caplog.text
    for change, line in (
        ({"shaping": {**code, "function": "tests.others"}}, "shaping: tests.others → tests.ranks"),
        ({"sigma": {"schedule": {"function": "optax.x"}, "values": {"10": 0.08}}}, "sigma.values.10: 0.08 → 0.0975"),
        (
            {"optimizer": {"name": "sgd", "arguments": {"learning_rate": 1.0}}},
            r"optimizer: sgd\(learning_rate=1.0\) → ",
        ),
    ):
        with pytest.raises(RunError, match=line):
            check_same({"strategy": {**olds[0], **change}}, now, force=False)
    assert compared("learning_rate", None, now["strategy"]["sigma"])  # None says something there
