"""What `bench/gpu_check.sh` brings along where there is no network."""

from __future__ import annotations

import pathlib

from bench import wheels

ROOT = pathlib.Path(__file__).parents[2]


def test_what_is_there_and_new_enough_is_not_replaced():
    there = {"flax": "0.12.8", "optax": "0.2.7", "rich": "15.1"}
    pins = ["flax==0.12.12", "optax==0.2.8", "rich==15.0.0", "tyro==1.0.17"]
    assert wheels.lacking(pins, {"flax": "0.12.8", "optax": "0.2.8"}, there.get) == ["optax==0.2.8", "tyro==1.0.17"]


def test_versions_are_compared_as_numbers():
    assert wheels.numbers("0.12.10") > wheels.numbers("0.12.8")
    assert wheels.numbers("1.0") < wheels.numbers("1.0.17")
    assert wheels.numbers("0.12.0.1") == (0, 12, 0)


def test_pins_satisfy_the_project_and_leave_jax_alone():
    pins = dict(pin.split("==") for pin in wheels.pins())
    assert not pins.keys() & {"jax", "jaxlib", "numpy", "scipy"}
    bounds = wheels.bounds()
    assert bounds["flax"] == "0.12.8" and bounds["jax"]
    for name in pins.keys() & bounds.keys():
        assert wheels.numbers(pins[name]) >= wheels.numbers(bounds[name]), name
    # No step draws a picture or saves a checkpoint.
    assert bounds.keys() - pins.keys() == {"jax", "numpy", "matplotlib", "orbax-checkpoint"}


def test_wheels_are_not_committed():
    assert ".wheels/" in (ROOT / ".gitignore").read_text().split()
