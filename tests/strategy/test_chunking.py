"""How many members are evaluated at once: whole units, within the working set, and memory that stays put."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.engine.interpreter import trace
from eggroll.strategy import chunking
from eggroll.strategy.chunking import check_chunk, units_per_chunk, units_per_update, working_set
from eggroll.strategy.plan import make_plan
from tests.strategy.common import KEY

PLAN = make_plan({"w": jnp.zeros((64, 32))}, None)


def program(hidden, steps=0):
    """Its largest operation reads `[8, hidden]` and writes as much."""

    def fun(p, x):
        h = jnp.broadcast_to(x[:, :1], (8, hidden))
        h = jnp.tanh(h) if not steps else jax.lax.fori_loop(0, steps, lambda _, h: jnp.tanh(h), h)
        return (x @ p["w"]).sum() + h.sum()

    return trace(fun, ({"w": jnp.zeros((64, 32))}, jnp.zeros((8, 64))))


def test_a_number_is_rounded_up_to_whole_units():
    for chunk, units, signs in itertools.product(range(1, 30), range(1, 20), (1, 2)):
        got = units_per_chunk(chunk, None, PLAN, units, signs)
        assert got == min(units, int(np.ceil(chunk / signs))), (chunk, units, signs)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_working_set_is_that_of_the_largest_operation(steps):
    wide = 2 * 8 * 4096 * 4
    assert wide <= working_set(program(4096, steps).jaxpr) <= 2 * wide
    assert working_set(program(1, steps).jaxpr) < wide / 100


@pytest.mark.parametrize(("units", "signs"), [(1, 2), (96, 2), (97, 1), (100_000, 2)])
def test_auto_fits_the_budget_and_prefers_a_divisor(units, signs):
    for hidden in (16, 4096, 1 << 20):
        need = signs * working_set(program(hidden).jaxpr) + 4 * PLAN.numbers
        got = units_per_chunk("auto", program(hidden), PLAN, units, signs)
        limit = max(1, min(units, chunking._budget() // need))
        assert 1 <= got <= limit
        divisors = [d for d in range(limit // 2 + 1, limit + 1) if units % d == 0]
        assert got == (max(divisors) if divisors else limit)


def test_larger_members_come_in_smaller_chunks():
    sizes = [units_per_chunk("auto", program(h), PLAN, 4096, 2) for h in (16, 4096, 1 << 16)]
    assert sizes[0] > sizes[1] > sizes[2] >= 1


def test_the_update_sums_as_many_units_as_its_noise_allows():
    assert units_per_update(PLAN, 64) == 64
    huge = make_plan({"w": jax.ShapeDtypeStruct((1 << 14, 1 << 14), jnp.float32)}, None, rules=[("w", "dense")])
    assert units_per_update(huge, 64) == 1


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, "Auto", None, [4]])
def test_what_is_no_chunk(chunk):
    with pytest.raises(ValueError, match=r"got chunk=.*; an integer of at least 1 is required.*\"auto\""):
        check_chunk(chunk)


def test_chunks_from_numpy_and_auto():
    assert check_chunk("auto") == "auto"
    assert type(check_chunk(np.int64(6))) is int


def temporary_bytes(population, chunk):
    """What the compiled estimate needs beside its arguments and results."""

    def loss(p, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) ** 2)

    f = eggroll.value_and_grad(loss, population=population, sigma=0.1, chunk=chunk)
    compiled = jax.jit(f).lower({"w": jnp.zeros((32, 64))}, jnp.zeros((16, 32)), key=KEY).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_population(monkeypatch):
    # The update sums as much noise at once as this allows; the default is more than such a small network ever needs.
    monkeypatch.setattr(chunking, "CPU_WORKING_SET", 1 << 10)
    small, large = temporary_bytes(256, 16), temporary_bytes(16 * 256, 16)
    activations = 16 * 64 * 4  # bytes of one member
    assert large - small < 16 * 256 * 64, "a few numbers per member: fitness, weights and their sorting"
    assert large < 4096 * activations / 16
    assert temporary_bytes(1024, 1024) > 4 * large, "the measure does see chunks"
