"""`bench.roofline`: the counts against XLA's and against NumPy, the limits' arithmetic, and a quick run."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from bench import roofline
from bench.tools import limits, needs, operations
from bench.tools.limits import HIGHEST, VECTOR, Limits, Probe
from bench.tools.linear import Layer
from bench.tools.operations import Operation
from bench.tools.timing import Timing
from eggroll.kernels import lowrank_dot, rank_update

pytestmark = pytest.mark.optimised  # bits, as users get them

N, P, K, M, R = 12, 6, 16, 24, 3


def xla_flop(fun, *shapes) -> float:
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(fun).lower(*args).compile().cost_analysis()["flops"]


def array_bytes(*shapes) -> int:
    return sum(4 * int(np.prod(shape)) for shape in shapes)


def test_base_product():
    need = needs.product(N, K, M, "float32")
    assert need.flop == xla_flop(jnp.matmul, (N, K), (K, M))
    assert need.moved == array_bytes((N, K), (K, M), (N, M))
    assert needs.product(N, K, M, "bfloat16").moved == need.moved / 2


def test_forward_adds_the_thin_and_the_outer_product():
    need = needs.forward(N, P, K, M, R, "float32")
    thin = N * xla_flop(jnp.matmul, (1, K), (K, R))
    outer = N * xla_flop(jnp.matmul, (1, R), (R, M))
    assert need.flop == xla_flop(jnp.matmul, (N, K), (K, M)) + thin + outer
    assert need.moved == array_bytes((N, K), (K, M), (N, M), (P, K, R), (P, M, R))


def test_the_correction_is_what_a_forward_pass_needs_beyond_the_base_product():
    whole, base = needs.forward(N, N, K, M, R, "float32"), needs.product(N, K, M, "float32")
    own = needs.correction(N, N, K, M, R, "float32")
    assert own.flop == whole.flop - base.flop and own.moved == whole.moved - base.moved
    assert own.moved == array_bytes((N, K, R), (N, M, R))


def test_rank_update():
    need = needs.rank_update(P, K, M, R, "float32")
    weighting = P * K * R  # the elementwise part, which is left out
    assert need.flop == pytest.approx(xla_flop(rank_update, (P,), (P, K, R), (P, M, R)) - weighting, rel=0.01)
    assert need.moved == array_bytes((P,), (P, K, R), (P, M, R), (K, M))
    assert need.work.keys() == {HIGHEST}


class Word:
    """A 32-bit word that counts the operations done to it."""

    count = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def made(self, value: int, operations: int) -> Word:
        Word.count += operations
        return Word(value % 2**32)

    def __add__(self, other: Word) -> Word:
        return self.made(self.value + other.value, 1)

    def __xor__(self, other: Word) -> Word:
        return self.made(self.value ^ other.value, 1)

    def rotated(self, by: int) -> Word:
        return self.made((self.value << by) | (self.value >> (32 - by)), 3)


def threefry_word(key: list[int], counter: int) -> Word:
    """One word of jax.random.bits, operation by operation; sums of key and constant are made once for all words."""
    keys = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    a, b = Word(keys[0]), Word(counter) + Word(keys[1])  # the counter's high word is zero
    for group in range(5):
        for rotation in rotations[group % 2]:
            a = a + b
            b = b.rotated(rotation) ^ a
        a = a + Word(keys[(group + 1) % 3])
        b = b + Word(keys[(group + 2) % 3] + group + 1)
    return a ^ b


def test_operations_of_a_random_word():
    key = jax.random.key(7)
    words = [int(word) for word in jax.random.bits(key, (3,), "uint32")]
    data = [int(word) for word in jax.random.key_data(key)]
    for counter, word in enumerate(words):
        Word.count = 0
        assert threefry_word(data, counter).value == word
        assert Word.count == needs.WORD_OPERATIONS


def test_random_numbers():
    assert needs.operations_per_number("rademacher") == 112 / 32 + 3
    assert needs.operations_per_number("normal") == 112 / 2 + 52
    need = needs.draw(1000, "normal", "bfloat16")
    assert need.moved == 2000 and need.work == {VECTOR: 108_000} and need.flop == 0


def test_a_step_is_forward_update_and_noise():
    need = needs.step(N, K, M, R, "rademacher", "float32")
    parts = [needs.forward(N, P, K, M, R, "float32"), needs.rank_update(P, K, M, R, "float32")]
    assert need.flop == sum(part.flop for part in parts)
    assert need.moved == array_bytes((N, K), (K, M), (K, M))  # x, weight in, weight out
    narrow = needs.step(N, K, M, R, "rademacher", "bfloat16")
    assert narrow.moved == 2 * N * K + K * M * (2 + 2 + 4 + 4)  # with the float32 copy
    assert need.work[VECTOR] == P * R * (K + M) * needs.operations_per_number("rademacher")


def test_the_noise_of_the_mlp_is_that_of_the_plan():
    sizes = operations.MLP
    params = [{"kernel": jnp.zeros((k, m)), "bias": jnp.zeros(m)} for k, m in pairwise(sizes)]
    plan = eggroll.explain(operations._mlp_fitness, params, jnp.zeros((5, 64)), jnp.zeros(5, jnp.int32), rank=2)
    need = needs.mlp_step(sizes, 5, 8, 2, "normal")
    assert need.work[VECTOR] / needs.operations_per_number("normal") == 4 * sum(row.numbers for row in plan.rows)


def test_an_mlp_of_one_layer_shares_base_product_and_thin_product():
    need = needs.mlp_step((K, M), 7, N, R, "rademacher")
    assert need.work["float32"] == 2 * 7 * K * M + P * 2 * 7 * K * R + N * 2 * 7 * R * M
    assert need.work[HIGHEST] == 2 * P * R * K * M + 2 * P * M
    deep = needs.mlp_step((K, M, K), 7, N, R, "rademacher")
    own = N * xla_flop(jnp.matmul, (7, M), (M, K))
    assert deep.work["float32"] - need.work["float32"] == own + N * 2 * 7 * R * (M + K)


KNOWN = Limits({"float32": 100.0, HIGHEST: 50.0, VECTOR: 10.0}, {1000: 400.0, 4000: 200.0, 16000: 250.0})


def test_the_bandwidth_is_that_of_copies_at_least_as_large():
    assert [KNOWN.bandwidth(size) for size in (1, 1000, 1001, 5000, 10**9)] == [400, 400, 250, 250, 250]


def test_seconds_of_each_limit():
    need = needs.Need("", {"float32": 200.0, HIGHEST: 50.0, VECTOR: 5.0}, moved=800.0)
    assert need.seconds(KNOWN) == {"matmul": 3.0, VECTOR: 0.5, "memory": 2.0}
    assert need.flop == 250.0


@pytest.mark.parametrize(
    ("work", "moved", "bound", "kind"),
    [
        ({"float32": 200.0}, 400.0, "compute", "matmul"),
        ({VECTOR: 30.0}, 400.0, "compute", VECTOR),
        ({}, 1000.0, "memory", "memory"),
    ],
)
def test_the_largest_limit_bounds(work, moved, bound, kind):
    need = needs.Need("", work, moved)
    row = roofline.row(Operation("a", 8, need), Timing("a", (9.0, 10.0, 11.0)), KNOWN)
    assert (row["bound_by"], row["limit"]) == (bound, kind)
    assert row["share_per_cent"] == pytest.approx(100 * max(need.seconds(KNOWN).values()) / 10.0)
    assert row["limit_ms"] == pytest.approx(1e3 * max(need.seconds(KNOWN).values()))


def test_a_difference_below_zero_has_no_share():
    timing = roofline.difference(Timing("a", (1.0, 1.0, 1.0)), Timing("b", (2.0, 3.0, 0.5)))
    assert timing.seconds == (-1.0, -2.0, 0.5)
    assert roofline.row(Operation("a", 8, needs.Need("", {}, 1.0)), timing, KNOWN)["share_per_cent"] is None


def test_the_fastest_round_of_the_best_probe_is_the_limit():
    probes = {"a": Probe(None, "float32", 10.0), "b": Probe(None, "float32", 30.0), "c": Probe(None, "copy", 16.0)}
    timings = {"a": Timing("a", (1.0, 2.0)), "b": Timing("b", (4.0, 2.0)), "c": Timing("c", (2.0, 1.0))}
    known = limits.limits(probes, timings)
    assert known.rates == {"float32": 15.0} and known.copies == {8: 16.0}


def test_probes_do_the_work_that_they_count():
    found = limits.probes("float32", (32,), (1,))
    assert found["matmul float32 128x32x32"].work == xla_flop(jnp.matmul, (128, 32), (32, 32))
    assert found["copy 1 MB"].work == 2 * 2**20
    before = np.asarray(found["copy 1 MB"].call()).copy()
    assert (np.asarray(found["copy 1 MB"].call()) == -before).all()
    assert {probe.rate for probe in found.values()} == {"float32", HIGHEST, "copy", VECTOR}


@pytest.mark.slow
def test_every_rate_that_a_bfloat16_layer_needs_is_probed():
    found = roofline.collect(dataclasses.replace(roofline.Options(dtype="bfloat16"), **roofline.QUICK))
    needed = {rate for operation in found.values() for rate in operation.need.work}
    assert needed <= {probe.rate for probe in limits.probes("bfloat16", (8,), (1,)).values()}


def test_the_elementwise_probe_counts_its_operations():
    steps = [eqn.primitive.name for eqn in jax.make_jaxpr(limits.mixed)(jnp.zeros(3, jnp.uint32)).eqns]
    arithmetic = [name for name in steps if name in ("add", "xor", "or", "shift_left", "shift_right_logical")]
    assert len(arithmetic) == len(steps) == limits.MIXED_OPERATIONS


def test_what_is_drawn_is_the_strategys_noise():
    layer = Layer(width=8, population=6)
    operation = operations._drawing("rademacher", layer)
    left, right = operation.call()
    assert left.size + right.size == operation.numbers == 6 // 2 * 16
    assert left.nbytes + right.nbytes == operation.need.moved
    assert set(np.abs(np.asarray(left)).ravel()) == {1.0}


def test_lowrank_dot_is_measured_with_factors_for_each_member():
    layer = Layer(width=8, population=4)
    outputs = operations._lowrank_dot(layer)()
    left, right = (np.repeat(np.asarray(f), 2, axis=0) for f in layer.factors)
    truth = [lowrank_dot(x, layer.weight, a, b) for x, a, b in zip(layer.inputs, left, right, strict=True)]
    np.testing.assert_allclose(outputs, np.stack(truth), atol=1e-4)


def test_a_row_takes_its_own_time_or_a_difference_of_others():
    need = needs.Need("n", {"float32": 100.0}, 100.0)
    found = {
        "base 8": Operation("base", 8, need, call=lambda: None, numbers=4000),
        "whole 8": Operation("whole", 8, need, call=lambda: None),
        "rest 8": Operation("rest", 8, need, timed="whole 8", beyond="base 8"),
    }
    timings = {"base 8": Timing("", (2.0, 4.0, 3.0)), "whole 8": Timing("", (6.0, 8.0, 9.0))}
    lines = roofline.table(found, timings, KNOWN)
    assert [line["measured_ms"] for line in lines] == [3000.0, 8000.0, 4000.0]
    figures = roofline.summary(KNOWN, lines, found)
    assert figures["base_millions_per_second_8"] == pytest.approx(4000 / 3.0 / 1e6)
    assert figures["matmul_gigaflop_per_second_float32_highest"] == 50 / 1e9


@pytest.mark.slow
def test_quick_run(capsys, tmp_path):
    roofline.main(["--quick", "--dtype", "bfloat16", "--out", str(tmp_path / "roofline.json")])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result == json.loads((tmp_path / "roofline.json").read_text())
    rows = result["rows"]
    assert len(rows) == 8 * len(result["settings"]["width"]) + 1
    for row in rows:
        assert row["limit_ms"] > 0 and row["needs"] and row["bound_by"] in ("compute", "memory")
        assert row["gigaflop"] > 0 or row["operation"].startswith("draw")
        if "less base" not in row["operation"]:  # a difference of small times may be anything
            assert row["share_per_cent"] > 0
    assert all(value > 0 for value in result["summary"].values())
    assert result["summary"]["draw_rademacher_millions_per_second_64"] > 0
