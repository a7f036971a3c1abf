"""`bench.profile` finds the kernels of a call, and counts what they cost."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import profile

pytestmark = pytest.mark.optimised  # bits, as users get them


def recorded(**planes):
    """A profile with one line of events a plane."""

    def plane(name, events):
        listed = [SimpleNamespace(name=n, duration_ns=d) for n, d in events]
        return SimpleNamespace(name=name, lines=[SimpleNamespace(events=listed)])

    return SimpleNamespace(planes=[plane(name.replace("_", "/"), events) for name, events in planes.items()])


def test_only_kernels_count_on_a_host():
    host = [("dot.3", 5), ("xla_metadata_call.1", 9), ("ThunkExecutor::Execute", 20), ("$f.py:3 g", 30), ("while.2", 9)]
    assert list(profile.kernels(recorded(_host=[*host, ("add_fusion", 2)]))) == [("dot.3", 5), ("add_fusion", 2)]


def test_where_there_is_a_device_the_host_does_not_count():
    planes = {"_host": [("dot.3", 5)], "_device:GPU:0": [("void gemm<float>", 7)]}
    assert list(profile.kernels(recorded(**planes))) == [("void gemm<float>", 7)]


def test_a_device_without_events_is_none():
    assert list(profile.kernels(recorded(**{"_host": [("dot.3", 5)], "_device:CUSTOM": []}))) == [("dot.3", 5)]


def test_kernels_of_a_real_call_are_found():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float32)
    call = jax.jit(lambda x: jnp.sort(x @ x))
    found = profile.profiled(lambda: call(x), 3)
    assert all(0 < found.calls[name] <= 3 for name in found.seconds)
    assert any("sort" in name for name in found.seconds)


@pytest.mark.slow
def test_a_quick_run_lists_the_kernels_of_every_call(capsys):
    profile.main(["--quick"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {row["operation"] for row in found["rows"]} == {profile.INFERENCE, profile.FORWARD, profile.STEP}
    for short in ("inference", "forward", "full_step"):
        assert found["summary"][f"{short}_milliseconds"] > 0
