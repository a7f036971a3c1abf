"""`bench.layer` measures what it names: every candidate computes the right thing, and the report holds every point."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import layer
from bench.tools import full_rank
from bench.tools.linear import LEARNING_RATE, SIGMA, Layer, one_more_pass, product, reduced
from bench.tools.timing import Timing


def weights_of_members(small: Layer, noise: np.ndarray) -> np.ndarray:
    """`[population, width, width]` from noise `[pairs, width, width]`: both signs of each."""
    signed = np.stack([noise, -noise], axis=1).reshape(small.population, small.width, small.width)
    return np.asarray(small.weight, np.float64) + SIGMA * signed


def outputs_of(small: Layer, weights: np.ndarray) -> np.ndarray:
    return np.einsum("nk,nkm->nm", np.asarray(small.inputs, np.float64), weights)


def updated(small: Layer, noise: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weight after a step of SGD on z-scored fitness, from every member's own noise."""
    fitness = -(outputs_of(small, weights) ** 2).mean(1)
    scores = (fitness - fitness.mean()) / fitness.std()
    signed = np.stack([noise, -noise], axis=1).reshape(small.population, small.width, small.width)
    gradient = -np.einsum("n,nkm->km", scores, signed) / (small.population * SIGMA)
    return np.asarray(small.weight, np.float64) - LEARNING_RATE * gradient


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_the_forward_pass_with_given_noise_is_that_of_the_dense_weights(rank, distribution):
    small = Layer(width=8, population=6, rank=rank, distribution=distribution)
    left, right = (np.asarray(f, np.float64) for f in small.factors)
    noise = np.einsum("pkr,pmr->pkm", left, right) / math.sqrt(rank)
    truth = outputs_of(small, weights_of_members(small, noise))
    for forward in (small.forward, small.forward_by_hand):
        outputs = jax.jit(forward)(small.weight, *small.factors, small.inputs)
        np.testing.assert_allclose(outputs, truth, atol=1e-5)


def test_the_step_with_given_noise_moves_as_the_dense_sum_says(monkeypatch):
    small = Layer(width=8, population=6, rank=2)
    monkeypatch.setattr(layer, "LEARNING_RATE", 1.0)
    left, right = (np.asarray(f, np.float64) for f in small.factors)
    noise = np.einsum("pkr,pmr->pkm", left, right) / math.sqrt(2)
    moved = layer.step_given(small, small.weight, *small.factors, small.inputs)
    truth = updated(small, noise, weights_of_members(small, noise))
    change = (truth - np.asarray(small.weight)) / LEARNING_RATE
    np.testing.assert_allclose(moved - small.weight, change, rtol=2e-3, atol=2e-3 * np.abs(change).max())


def test_one_more_pass_reads_every_input_and_writes_every_output():
    small = Layer(width=8, population=6)
    x, w = (np.asarray(a, np.float64) for a in (small.inputs, small.weight))
    np.testing.assert_allclose(
        one_more_pass(small.inputs, small.weight), x @ w + SIGMA * x.sum(1, keepdims=True), atol=1e-5
    )


def test_noise_on_the_fly_is_the_strategys_own():
    small = Layer(width=8, population=6)
    members = small.es.ask(small.state())
    outputs = members.apply(product, small.inputs, in_axes=0)
    dense = np.stack([members.materialize(i)["kernel"] for i in range(6)])
    np.testing.assert_allclose(outputs, outputs_of(small, dense), atol=1e-5)
    assert len({row.tobytes() for row in dense}) == 6


def test_on_an_accelerator_the_same_is_under_jit(monkeypatch):
    small = Layer(width=8, population=6)
    there = layer.low_rank_candidates(small)
    wanted = there[layer.FORWARD](), there[layer.STEP]().params["kernel"]
    monkeypatch.setattr("bench.tools.linear.jax.default_backend", lambda: "gpu")
    here = layer.low_rank_candidates(small)
    got = here[layer.FORWARD](), here[layer.STEP]().params["kernel"]
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(here[layer.STEP]().params["kernel"] - got[1])).max() > 0  # the state goes on


def test_full_rank_forward_is_that_of_the_dense_weights():
    small = Layer(width=8, population=6)
    key = jax.random.key(0)
    noise = full_rank.given_noise(small, key)
    truth = outputs_of(small, weights_of_members(small, np.asarray(noise).swapaxes(1, 2)))
    given = full_rank.forward_given(small, small.weight, small.inputs, noise)
    np.testing.assert_allclose(given, truth, atol=1e-5)
    np.testing.assert_allclose(full_rank.forward(small, small.weight, small.inputs, key), truth, atol=1e-5)
    np.testing.assert_allclose(np.asarray(noise).std(), 1.0, atol=0.2)


def test_full_rank_step_moves_as_the_dense_sum_says(monkeypatch):
    small = Layer(width=8, population=6)
    monkeypatch.setattr(full_rank, "LEARNING_RATE", 1.0)
    key = jax.random.key(0)
    noise = full_rank.given_noise(small, key)
    dense = np.asarray(noise, np.float64).swapaxes(1, 2)
    change = (updated(small, dense, weights_of_members(small, dense)) - np.asarray(small.weight)) / LEARNING_RATE
    for moved in (
        full_rank.step_given(small, small.weight, small.inputs, noise),
        full_rank.step(small, small.weight, small.inputs, key),
    ):
        np.testing.assert_allclose(moved - small.weight, change, rtol=2e-3, atol=2e-3 * np.abs(change).max())


def test_full_rank_draws_once_a_step():
    """Noise that XLA made twice, for the product and for the sum, would flatter us."""
    small = Layer(width=64, population=4)
    args = small.weight, small.inputs, jax.random.key(0)
    flop = {
        name: jax.jit(lambda *a, f=f: f(small, *a)).lower(*args).compile().cost_analysis()["flops"]
        for name, f in (("forward", full_rank.forward), ("step", full_rank.step))
    }
    assert flop["step"] < 1.2 * flop["forward"]


def test_pairs_at_once_divide_the_pairs(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(full_rank, "CHUNK_BYTES", 5 * 4 * 8 * 8)
    assert full_rank.pairs_at_once(Layer(width=8, population=24)) == 4
    assert full_rank.pairs_at_once(Layer(width=8, population=6)) == 3
    assert full_rank.pairs_at_once(Layer(width=64, population=6)) == 1


def test_the_fitness_is_minus_the_mean_square():
    outputs = jnp.array([[1.0, 3.0], [0.0, 2.0]], jnp.bfloat16)
    assert reduced(outputs).tolist() == [-5.0, -2.0] and reduced(outputs).dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_candidate_runs_and_training_goes_on(dtype):
    small = Layer(width=8, population=6, dtype=dtype)
    calls = layer.low_rank_candidates(small) | layer.full_rank_candidates(small)
    for name, call in calls.items():
        first = jax.tree.leaves(jax.tree.map(np.asarray, _arrays(call())))
        assert all(np.isfinite(x.astype(np.float64)).all() for x in first), name
    state = calls[layer.STEP].state
    calls[layer.STEP]()
    assert calls[layer.STEP].state.generation == state.generation + 1
    assert small.weight.dtype == dtype and small.inputs.dtype == dtype and small.factors[0].dtype == dtype
    assert calls[layer.STEP_GIVEN].state.dtype == jnp.float32


def _arrays(result):
    return result.params if hasattr(result, "params") else result


def test_rows_count_per_member():
    """Full-rank ES runs at another population: 4 members in 4 s are 100 times as long as 400 in 4 s."""
    names = layer.low_rank_candidates(Layer(8, 2)).keys() | layer.full_rank_candidates(Layer(8, 2)).keys()
    timings = {name: Timing(name, (0.01, 0.02)) for name in names} | {layer.FULL_STEP: Timing("", (1.0, 2.0))}
    table = {row["operation"]: row for row in layer.rows(Layer(8, 400), Layer(8, 4), timings)}
    row = table[layer.FULL_STEP]
    assert (row["population"], row["ratio"], row["per_cent_of_inference"]) == (4, 100.0, 1.0)
    assert row["milliseconds"] == pytest.approx(1500 * 4)
    assert table[layer.STEP]["milliseconds"] == pytest.approx(15 * 400)
    assert layer.summary(8, timings)["full_rank_step_over_ours_8"] == 100.0


@pytest.mark.slow
def test_quick_run(capsys, tmp_path):
    layer.main(["--quick", "--dtype", "bfloat16", "--out", str(tmp_path / "layer.json")])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result == json.loads((tmp_path / "layer.json").read_text())
    settings, rows = result["settings"], result["rows"]
    operations = {row["operation"] for row in rows}
    assert len(rows) == len(operations) * len(settings["width"]) and set(layer.PAPER) <= operations
    for row in rows:
        assert 0 < row["low"] <= row["ratio"] <= row["high"] and row["milliseconds"] > 0 and row["like_for_like"] > 0
        assert row["per_cent_of_inference"] == pytest.approx(100 / row["ratio"], rel=1e-4)
    assert [row["ratio"] for row in rows if row["operation"] == layer.INFERENCE] == [1.0] * len(settings["width"])
    assert len(result["summary"]) == 7 * len(settings["width"]) and all(v > 0 for v in result["summary"].values())
