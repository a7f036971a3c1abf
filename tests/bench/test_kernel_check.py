"""`bench.kernel_check`: every implementation against the truth, and what is wrong is found."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from bench import kernel_check
from bench.tools.kernel_cases import DTYPES, OPERATIONS, cases
from bench.tools.kernel_shapes import MIDDLE, PAPER, SMALL
from eggroll.kernels import implementations
from eggroll.kernels.tpu_lowrank_dot import lowrank_dot_tpu
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from eggroll.ops import members, registry
from eggroll.ops.cases import NOISE, Case, checked
from eggroll.ops.operations import lowrank_dot_reference, rank_update_reference
from eggroll.ops.truth import dot_operands, dot_truth, update_operands, update_truth
from tests.quick import quickest


@pytest.fixture
def plug(monkeypatch):
    """Registers a function for this test alone."""

    def add(operation, function, name="plugged"):
        registry.implementations(operation)  # all are loaded: none registers itself in what is undone after the test
        known = {**registry._OPERATIONS[operation], name: registry.Implementation(name, function, ("cpu",))}
        monkeypatch.setitem(registry._OPERATIONS, operation, known)
        members._dot.cache_clear()

    yield add
    members._dot.cache_clear()


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("operation", quickest(OPERATIONS))
def test_the_reference_is_right(operation, capsys):
    kernel_check.main(["--operation", operation, "--implementation", "reference", "--quick"])
    found = lines(capsys)
    asked = cases(operation, quick=True)
    assert [line["started"] for line in found[0::2]] == [line["number"] for line in found[1::2]] == [*range(len(asked))]
    assert [line["case"] for line in found[1::2]] == [case.name for case in asked]
    assert {line["verdict"] for line in found[1::2]} == {"ok"}
    assert all(0 <= line["error_over_bound"] <= 1 for line in found[1::2])


def test_parts_are_all_of_the_cases(monkeypatch, capsys):
    monkeypatch.setattr(kernel_check, "checked", lambda case, _: {"verdict": "ok"})
    for part in range(3):
        options = ["--operation", "lowrank_dot", "--implementation", "reference", "--quick", "--start", "2"]
        kernel_check.main([*options, "--part", str(part), "--parts", "3"])
    numbers = [line["number"] for line in lines(capsys) if "number" in line]
    count = len(cases("lowrank_dot", quick=True))
    assert numbers == [*range(3, count, 3), *range(4, count, 3), *range(2, count, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "dtype"), list(zip(OPERATIONS, DTYPES, strict=True)))
def test_a_kernel_in_the_interpreter_is_right(plug, operation, dtype):
    plug("lowrank_dot", functools.partial(lowrank_dot_tpu, interpret=pltpu.InterpretParams()))
    plug("rank_update", functools.partial(rank_update_tpu, interpret=pltpu.InterpretParams()))
    for case in (
        *(Case(operation, shape, "rademacher", dtype, noise=True) for shape in NOISE),
        Case(operation, SMALL[1], "rademacher", dtype),
    ):
        assert checked(case, "plugged")["verdict"] == "ok"


def test_noise_of_other_bits_is_wrong(plug):
    def mirrored(x, w, left, right, **options):
        other = dataclasses.replace(left, key=left.key ^ np.uint32(1))
        return lowrank_dot_reference(x, w, other, right, **options)

    plug("lowrank_dot", mirrored)
    for case in (
        Case("lowrank_dot", NOISE[0], "rademacher", "float32", noise=True),
        Case("lowrank_dot", SMALL[1], "rademacher", "bfloat16"),
    ):
        found = checked(case, "plugged")
        assert found["verdict"] == "wrong" and "beyond the bound" in found["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [1e-3, jnp.nan])
def test_a_number_beyond_the_bound_is_wrong(plug, error):
    def off(weights, left, right, **options):
        return rank_update_reference(weights, left, right, **options).at[3, 4].add(error)

    plug("rank_update", off)
    found = checked(Case("rank_update", SMALL[1], "normal", "float32"), "plugged")
    assert found["verdict"] == "wrong"
    assert found["error_over_bound"] is None or found["error_over_bound"] > 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_single_wrong_number_of_the_noise_is_found(plug, operation):
    """Of a factor, although it would be lost in the rounding of a product."""

    def flipped(factor, unit, place):
        array = factor.array()
        return array.at[unit, place].multiply(-1)

    def dot(x, w, left, right, *, scale, **options):
        thin = jnp.einsum("mrk,mkj->mrj", x, flipped(left, 2, 1)) * scale.astype(x.dtype)[:, None, None]
        return x @ w + jnp.einsum("mrj,mnj->mrn", thin, right.array())

    def update(weights, left, right, **options):
        return rank_update_reference(weights, left.array(), flipped(right, 2, 149), **options)

    plug("lowrank_dot", lambda *operands, precision, **options: dot(*operands, **options))
    plug("rank_update", update)
    found = checked(Case(operation, NOISE[0], "rademacher", "bfloat16", noise=True), "plugged")
    assert found["verdict"] == "wrong"


def test_another_shape_is_wrong(plug):
    plug("rank_update", lambda *operands, **options: rank_update_reference(*operands, **options).T)
    assert "shape" in checked(Case("rank_update", SMALL[1], "normal", "float32"), "plugged")["reason"]


def test_what_cannot_be_done_and_what_fails(plug, capsys):
    def unable(*operands, **options):
        raise NotImplementedError("rank above 16")

    def uncompilable(*operands, **options):
        raise ValueError("no such register")

    def crashing(weights, left, right, **options):
        result = rank_update_reference(weights, left, right, **options)

        def fail(value):
            raise FloatingPointError("device lost")

        return jax.pure_callback(fail, jax.ShapeDtypeStruct(result.shape, result.dtype), result)

    case = Case("rank_update", SMALL[1], "rademacher", "float32")
    for name, function in {"unable": unable, "uncompilable": uncompilable, "crashing": crashing}.items():
        plug("rank_update", function, name)
    assert checked(case, "unable") == {"verdict": "cannot", "reason": "rank above 16"}
    assert checked(case, "uncompilable") == {
        "verdict": "failed", "stage": "compile", "reason": "ValueError: no such register"
    }  # fmt: skip
    arguments = ["--operation", "rank_update", "--implementation", "crashing", "--quick", "--start", "3"]
    with pytest.raises(SystemExit) as end:
        kernel_check.main(arguments)
    assert end.value.code == kernel_check.BROKEN
    *_, last = lines(capsys)
    assert last["number"] == 3 and last["stage"] == "run" and "device lost" in last["reason"]


@pytest.mark.slow
def test_a_part_of_the_truth_is_that_part():
    shape = SMALL[3]
    operands = dot_operands(shape, "normal", jnp.float32)
    for some, whole in zip(dot_truth(*operands, members=[0, 4]), dot_truth(*operands), strict=True):
        np.testing.assert_allclose(some, whole[[0, 4]])
    operands = update_operands(shape, "normal", jnp.float32)
    start = np.ones((shape.depth, shape.columns))
    for some, whole in zip(update_truth(*operands, start, [0, 7]), update_truth(*operands, start), strict=True):
        np.testing.assert_allclose(some, whole[[0, 7]])


def test_all_shapes_are_checked():
    for operation in OPERATIONS:
        asked = cases(operation)
        assert {case.shape for case in asked} == {*NOISE, *SMALL, *MIDDLE, PAPER}
        assert len(asked) == len(set(asked)) == len({case.name for case in asked})


def test_implementations_of_a_platform():
    assert implementations("lowrank_dot", platform="cpu") == ("reference",)
    assert "mosaic_tpu" in implementations("lowrank_dot", platform="tpu")
