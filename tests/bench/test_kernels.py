"""`bench.kernels`: what is timed computes what it says, and the counts are those of the work."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bench import kernels
from bench.tools import kernel_candidates, needs
from bench.tools.kernel_candidates import BOTH, FORWARD, GIVEN, INFERENCE, ON_THE_FLY, PRODUCT, SQUARE, STEP, UPDATE
from bench.tools.kernel_shapes import PAPER, Shape
from bench.tools.limits import HIGHEST, VECTOR
from bench.tools.linear import SIGMA
from bench.tools.needs import Need
from bench.tools.timing import Timing
from eggroll.ops.truth import dot_truth, seeded, update_truth

SMALL = Shape(units=3, signs=2, rows=1, depth=8, columns=8, rank=2)


def of(candidates, operation, noise=""):
    (found,) = (c for c in candidates if (c.operation, c.noise) == (operation, noise))
    return found


@pytest.fixture(scope="module")
def candidates():
    return kernel_candidates.kernels(SMALL, "normal", "float32", "reference")


@pytest.fixture(scope="module")
def operands():
    """What the candidates are made of, drawn again."""
    left, right = (seeded(i, 3, 8, 2, "normal") for i in range(2))
    x, w = kernel_candidates.normal(0, (6, 1, 8), "float32"), kernel_candidates.weight(SMALL, "float32")
    scale = np.array([1.0, -1.0] * 3) * SIGMA / 2**0.5
    return x, w, left, right, scale


@pytest.mark.parametrize("noise", [ON_THE_FLY, GIVEN])
def test_forward_and_update_are_the_kernels(candidates, operands, noise):
    np.testing.assert_allclose(of(candidates, FORWARD, noise).call(), dot_truth(*operands)[0], rtol=1e-5, atol=1e-5)
    weights = kernel_candidates.normal(5, (3,), "float32")
    truth = update_truth(weights, *operands[2:4])[0]
    np.testing.assert_allclose(of(candidates, UPDATE, noise).call(), truth, rtol=1e-5, atol=1e-5)


def test_an_implementation_of_one_operation_has_a_step_with_the_references_other():
    found = kernel_candidates.kernels(SMALL, "rademacher", "float32", "xla_parts")
    assert [c.operation for c in found] == [UPDATE, STEP] * 2
    with_reference = kernel_candidates.kernels(SMALL, "rademacher", "float32", "reference")
    for noise in (ON_THE_FLY, GIVEN):
        got, want = (np.asarray(of(candidates, STEP, noise).call()) for candidates in (found, with_reference))
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.slow
def test_a_step_moves_as_the_dense_sum_says(operands, monkeypatch):
    monkeypatch.setattr(kernel_candidates, "LEARNING_RATE", 1.0)
    x, w, left, right, scale = operands
    fitness = -(dot_truth(*operands)[0][:, 0] ** 2).mean(1)
    scores = (fitness - fitness.mean()) / fitness.std()
    a, b = (np.asarray(f.array(), np.float64) for f in (left, right))
    change = np.einsum("m,mir,mjr->ij", scores * np.tile([1, -1], 3), np.repeat(a, 2, 0), np.repeat(b, 2, 0))
    moved = kernel_candidates.one_step(w, x, left, right, jnp.asarray(scale), forward="reference", update="reference")
    np.testing.assert_allclose(moved - w, change / (6 * SIGMA), rtol=2e-3, atol=2e-3 * np.abs(change).max())


def test_steps_follow_one_another(candidates):
    step = of(candidates, STEP, ON_THE_FLY).call
    first = np.asarray(step()).copy()
    np.testing.assert_allclose(step(), first, atol=1e-3)  # a small learning rate: a thousand steps stay finite
    assert step.weight.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products(dtype):
    found = kernel_candidates.products(SMALL, dtype, 16)
    assert [c.operation for c in found] == [INFERENCE, PRODUCT, SQUARE, BOTH]
    assert of(found, INFERENCE).call().dtype == dtype and of(found, INFERENCE).call().shape == (6, 8)
    assert (
        of(found, PRODUCT).call().dtype == of(found, SQUARE).call().dtype == of(found, BOTH).call().dtype == "float32"
    )
    assert of(found, PRODUCT).call().shape == (8, 8) and of(found, SQUARE).need.flop == 2 * 16**3


def test_counts_of_the_papers_layer():
    """By hand, for M = 1024 members, K = N = 8192, 512 units of rank 1, ±1 noise."""
    count = {
        (name, noise): kernel_candidates.need_of(name, PAPER, "rademacher", "bfloat16", noise)
        for name in (FORWARD, UPDATE, STEP)
        for noise in (ON_THE_FLY, GIVEN)
    }
    forward, update, step = (count[name, ON_THE_FLY] for name in (FORWARD, UPDATE, STEP))
    assert forward.flop == 2 * 1024 * 8192**2 + 2 * 1024 * 2 * 8192
    assert update.flop == 2 * 512 * 8192**2
    assert step.flop == forward.flop + update.flop
    numbers = 512 * 2 * 8192
    assert {c.work[VECTOR] for c in (forward, update, step)} == {numbers * (112 / 32 + 3)}
    assert forward.moved == 2 * (1024 * 8192 * 2 + 8192**2) + 512 * 16  # x, W, y; two keys a unit
    assert update.moved == 512 * (4 + 16) + 4 * 8192**2
    assert count[FORWARD, GIVEN].moved - forward.moved == 2 * numbers - 512 * 16
    assert count[UPDATE, GIVEN].moved - update.moved == 2 * numbers - 512 * 16
    assert count[STEP, GIVEN].moved - step.moved == 2 * numbers
    assert all(VECTOR not in count[name, GIVEN].work for name in (FORWARD, UPDATE, STEP))
    assert kernels.step_limit(PAPER) == pytest.approx(200 / 3)


def test_products_of_float32_are_counted_at_their_own_rate():
    assert needs.summed(2, 3, 5, "float32") == Need("2NKM FLOP; b(NK + KM) + 4NM bytes", {HIGHEST: 60.0}, 4 * (21 + 10))
    assert needs.summed(2, 3, 5, "bfloat16").moved == 2 * 21 + 40
    assert needs.rank_update_on_the_fly(2, 3, 5, 1, "rademacher", "float32").work[HIGHEST] == 60


def test_a_row_is_in_units_of_inference_and_of_the_product():
    need = Need("", {"bfloat16": 4e12, VECTOR: 2e9}, 5e6)
    timings = {
        "inference": Timing("inference", (1.0, 1.0, 1.0)),
        "lowrank_dot, fast, given": Timing("a", (1.25, 1.25, 1.0)),
        "rank_update, fast": Timing("b", (2.0, 2.0, 2.0)),
    }
    rates = {PRODUCT: 4e12, SQUARE: 8e12}
    forward = kernels.Candidate(FORWARD, lambda: None, need, "fast", GIVEN)
    line = kernels.row(forward, timings, rates, 66.7)
    assert line["per_cent_of_inference"] == pytest.approx(80) and line["limit_per_cent"] is None
    assert line["gigaflop"] == 4e3 and line["gigaoperations"] == 2 and line["megabytes"] == 5
    assert line["teraflop_per_second"] == pytest.approx(3.2) and line["per_cent_of_product"] is None
    line = kernels.row(kernels.Candidate(UPDATE, lambda: None, need, "fast"), timings, rates, 66.7)
    assert line["per_cent_of_product"] == pytest.approx(50) and line["per_cent_of_square"] == pytest.approx(25)
    assert line["per_cent_of_inference"] is None


def test_what_does_not_work_is_a_note():
    def unable():
        raise NotImplementedError("arrays")

    good = kernels.Candidate(FORWARD, lambda: jnp.ones(1), Need(""), "a")
    found, notes = kernels.working([kernels.Candidate(UPDATE, unable, Need(""), "fast", GIVEN), good])
    assert found == [good] and notes == ["rank_update, fast, given: NotImplementedError: arrays"]


@pytest.mark.slow
def test_a_quick_run(capsys, tmp_path):
    kernels.main(["--quick", "--dtype", "float32", "--out", str(tmp_path / "kept.json")])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [r["operation"] for r in found["rows"]] == [INFERENCE, PRODUCT, SQUARE, BOTH, *[FORWARD, UPDATE, STEP] * 2]
    assert {r["implementation"] for r in found["rows"]} == {None, "reference"}
    assert all(r["milliseconds"] > 0 and r["gigaflop"] > 0 and r["megabytes"] > 0 for r in found["rows"])
    assert found["summary"]["lowrank_dot_reference_on_the_fly_per_cent_of_inference"] > 0
    assert found["summary"]["rank_update_reference_given_per_cent_of_square"] > 0
