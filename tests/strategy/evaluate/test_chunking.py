"""How many members are evaluated at once: whole units, within the working set, and memory that stays put."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.engine.factored import trace
from eggroll.strategy import generation
from eggroll.strategy.evaluate import chunking
from eggroll.strategy.evaluate.chunking import auto_units, units_per_update
from eggroll.strategy.evaluate.tracing import make_rows
from eggroll.strategy.generation import Generation
from eggroll.strategy.plan.leaves import make_plan
from eggroll.strategy.population import check_chunk
from tests.strategy.common import KEY

PLAN = make_plan({"w": jnp.zeros((64, 32))}, None)


def units(chunk, population, antithetic, hidden=64):
    """Units evaluated at once of a function whose largest operation reads and writes `[8, hidden]` per member."""
    shapes = ({"w": jnp.zeros((64, hidden))}, jnp.zeros((8, 64)))
    program = trace(lambda p, x: jnp.tanh(x @ p["w"]).sum(), shapes)
    settings = {"population": population, "sigma": 0.1, "chunk": chunk, "antithetic": antithetic}
    strategy = eggroll.ES(optimizer=optax.sgd(1.0), **settings).settings
    plan = make_plan(shapes[0], None)
    return (
        Generation(strategy, plan, KEY, 0.1)
        .arrangement(program, shapes[0], make_rows(shapes[1:], None, population, 1))
        .units
    )


def test_a_number_is_rounded_up_to_whole_units():
    for chunk, pairs, antithetic in itertools.product(range(1, 10), range(1, 7), (False, True)):
        signs = 2 if antithetic else 1
        assert units(chunk, pairs * signs, antithetic) == min(pairs, int(np.ceil(chunk / signs)))


@pytest.mark.parametrize("count", [1, 96, 97, 100_000])
def test_auto_fits_the_budget_and_prefers_a_divisor(count):
    for need in (0, 100, 30_000, 4 << 20, 1 << 30):
        got = auto_units(need, count)
        limit = max(1, min(count, chunking._budget() // max(need, 1)))
        assert 1 <= got <= limit
        divisors = [d for d in range(limit // 2 + 1, limit + 1) if count % d == 0]
        assert got == (max(divisors) if divisors else limit)


def test_larger_members_come_in_smaller_chunks():
    sizes = [units("auto", 4096, True, hidden) for hidden in (64, 4096, 1 << 16)]
    assert sizes[0] > sizes[1] > sizes[2] >= 1
    assert units("auto", 4096, False, 4096) >= 1.5 * sizes[1], "single members need half of what pairs do"


def test_members_of_one_row_come_in_chunks_of_enough_rows(monkeypatch):
    need = 4 << 20
    assert auto_units(need, 4096) == 2
    assert auto_units(need, 4096, rows=1) * need <= chunking._host_memory() * chunking.CPU_SHARE
    monkeypatch.setattr(chunking, "_host_memory", lambda: 1 << 40)
    assert auto_units(need, 4096, rows=1) == chunking.ENOUGH_ROWS
    assert auto_units(need, 4096, rows=2) == chunking.ENOUGH_ROWS / 2
    assert auto_units(need, 4096, rows=1 << 20) == 2


def test_a_small_population_is_one_chunk():
    need = chunking.FEW_BYTES // 1024
    assert auto_units(need, 1024, rows=4) == 1024
    assert auto_units(need, 1024, rows=0) < 1024, "how many rows is not known"
    assert auto_units(need, 1024, rows=5) < 1024, "too many rows"
    assert auto_units(need + 1, 1024, rows=4) < 1024, "too many bytes"


def test_a_choice_is_remembered_for_the_same_program(monkeypatch):
    asked = []
    real = generation.member_need
    monkeypatch.setattr(generation, "member_need", lambda *args: asked.append(args) or real(*args))
    monkeypatch.setattr(chunking, "_CHOSEN", OrderedDict())
    first = units("auto", 4096, True, 96)
    assert units("auto", 4096, True, 96) == first and len(asked) == 1
    units("auto", 2048, True, 96)
    assert len(asked) == 1, "what a member needs does not depend on how many there are"
    units("auto", 4096, True, 97)
    assert len(asked) == 2
    for i in range(2 * chunking.REMEMBERED):
        chunking.remembered(i, lambda: 1)
    assert len(chunking._CHOSEN) == chunking.REMEMBERED


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
