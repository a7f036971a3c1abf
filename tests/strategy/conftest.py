"""Kernels for this platform that stand in for those of others."""

from __future__ import annotations

from functools import partial

import pytest

from eggroll.kernels.tpu_lowrank_dot import lowrank_dot_tpu
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from eggroll.ops import registry
from eggroll.ops.operations import lowrank_dot_reference, rank_update_reference

TPU = {"lowrank_dot": lowrank_dot_tpu, "rank_update": rank_update_tpu}
# The same objects in all tests, so that a process checks them once; not importable, so that none is kept on disk.
REFERENCE = {"lowrank_dot": partial(lowrank_dot_reference), "rank_update": partial(rank_update_reference)}
INTERPRETED = {name: partial(function, interpret=True) for name, function in TPU.items()}


def register(monkeypatch, functions):
    """Registers a kernel of each operation for CPUs."""
    for operation, function in functions.items():
        registry.implementations(operation)  # all are loaded: none registers itself in what is undone after the test
        known = {**registry._OPERATIONS[operation], "kernel": registry.Implementation("kernel", function, ("cpu",))}
        monkeypatch.setitem(registry._OPERATIONS, operation, known)


@pytest.fixture
def kernels(monkeypatch):
    """Both operations have a kernel on this platform."""
    register(monkeypatch, REFERENCE)


@pytest.fixture
def tpu_kernels(monkeypatch):
    """The kernels of TPUs, interpreted."""
    register(monkeypatch, INTERPRETED)


@pytest.fixture
def picky_kernel(monkeypatch):
    """A kernel that can do nothing."""

    def picky(*args, **options):
        raise NotImplementedError("nothing suits me")

    register(monkeypatch, {"lowrank_dot": picky})
