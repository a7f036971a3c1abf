import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import chunks, model
from bench.tools.inference import chunked_inference, limit, plain_inference
from bench.tools.networks import NETWORKS
from bench.tools.timing import LEAST_ROUNDS, Timing, interleave
from tests.quick import quickest

TINY = ["--quick", "--populations", "8", "--rows", "4", "--networks", "digits"]


def run(capsys, arguments):
    model.main(arguments)
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.slow
def test_a_tiny_run_says_what_step_and_forward_cost(capsys, tmp_path):
    out = tmp_path / "kept.json"
    found = run(capsys, [*TINY, "transformer", "--out", str(out)])
    names = "step_over_inference", "step_over_scored_inference", "forward_over_inference", "members_per_second"
    for row, network in zip(found["rows"], ("digits", "transformer"), strict=True):
        assert (row["network"], row["population"], row["parts"]) == (network, 8, 1)
        assert 1 <= row["chunk"] <= 8 and all(0 < row[name] < math.inf for name in names)
        assert row["low"] <= row["step_over_inference"] <= row["high"]
        for ratio in ("step_over_inference", "limit_over_inference"):
            assert found["summary"][f"{network}_8_{ratio}"] == row[ratio]
    assert len(found["summary"]) == 4
    assert json.loads(out.read_text())["rows"] == found["rows"]


@pytest.mark.slow
def test_decoding_is_summed_up_in_per_cent_of_tokens():
    timings = {
        name: Timing(name, seconds)
        for name, seconds in {
            "inference": (1.0, 2.0, 3.0),
            "scored": (2.0, 4.0, 6.0),
            "limit": (0.5, 1.0, 1.5),
            "forward": (1.25, 2.5, 3.75),
            "step": (1.5, 3.0, 4.5),
        }.items()
    }
    row = model.row(model.network(model.Options(quick=True), "decode"), 8, timings)
    assert row["step_over_inference"] == pytest.approx(1.5)
    assert row["step_over_scored_inference"] == pytest.approx(0.75)
    assert row["limit_over_inference"] == pytest.approx(0.5)
    assert row["forward_percent"] == pytest.approx(80)
    assert row["members_per_second"] == pytest.approx(8 / 3)
    assert model.summary([row])["decode_8_percent_of_tokens"] == pytest.approx(80)


def test_points_are_each_networks_own_unless_asked_for():
    every = list(model.points(model.Options()))
    assert {name for name, _ in every} == set(model.POPULATIONS)
    assert {p for name, p in every if name == "digits"} == {64, 256, 1024, 4096, 16384}
    asked = model.Options(networks=("cnn", "decode"), populations=(2, 4))
    assert list(model.points(asked)) == [("cnn", 2), ("cnn", 4), ("decode", 2), ("decode", 4)]


@pytest.mark.parametrize(("limit", "parts"), [(math.inf, 1), (8 * 4 * 5, 2), (0, 12)])
def test_inference_is_split_into_as_few_equal_parts_as_fit(limit, parts):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    weight = jnp.arange(15.0).reshape(3, 5)
    found = plain_inference(lambda w, x: x @ w, weight, (rows,), limit)
    assert found.parts == len(found.call()) == parts
    np.testing.assert_allclose(np.concatenate(found.call()), rows @ weight, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 12, 64])
def test_inference_in_chunks_is_the_same_inference(size):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    weight = jnp.arange(15.0).reshape(3, 5)
    (found,) = chunked_inference(lambda w, x, y: x @ w + y, weight, (rows, jnp.ones(12)), size).call()
    np.testing.assert_allclose(found, rows @ weight + 1, rtol=1e-5)


@pytest.mark.parametrize("name", quickest(["digits", "cnn", "transformer", "decode"], "digits"))
def test_the_limit_is_the_network_with_noise_on_one_parameter_of_its_own(name):
    """Members differ, and but for that parameter's noise each has the fitness of the plain network."""
    small = {"depth": 2, "width": 32, "tokens": 8} if name in ("transformer", "decode") else {}
    network = NETWORKS[name](rows=4 if name == "decode" else 2, **small)
    found = np.asarray(jax.tree.leaves(limit(network, 4, 2)())[0])
    assert found.shape == (4,)
    rows = network.copies(4)
    plain = jax.vmap(network.fitness, in_axes=(None, *[0] * len(rows)))(network.params, *rows)
    if name == "decode":
        np.testing.assert_allclose(found, plain, rtol=1e-5)
    else:
        assert len(set(found.tolist())) == 4
        np.testing.assert_allclose(found, plain, rtol=0.05)


def test_slow_candidates_get_three_rounds():
    calls = []
    timings = interleave({"a": lambda: calls.append(1)}, rounds=50, least_seconds=0, most_seconds=0)
    assert len(timings["a"].seconds) == LEAST_ROUNDS
    assert len(calls) == LEAST_ROUNDS + 2  # one compiles, one says how many calls make a turn


def test_choosing_costs_the_difference_of_first_calls_in_steps(monkeypatch):
    asked = []

    def first_call(options, name, population, chunk):
        asked.append(chunk)
        return {"first": 5.0 if chunk == "auto" else 4.0, "later": 0.5, "chunk": 16}

    monkeypatch.setattr(chunks, "fresh_first_call", first_call)
    cost = chunks.choosing_cost(model.Options(first_calls=2), "digits", 64)
    assert cost == {"choosing_costs_steps": 2.0, "spread": 0.0}
    assert asked == ["auto", 16, "auto", 16]


@pytest.mark.slow
def test_auto_is_compared_with_the_best_fixed_chunk_and_choosing_costs_first_calls_in_fresh_processes(capsys, tmp_path):
    found = run(capsys, [*TINY, "--chunks", "2", "64", "--out", str(tmp_path / "kept.json")])
    (row,), summary = found["rows"], found["summary"]
    assert found["question"] == "chunks"
    assert row["best_fixed"] == 2 and row["chunk_2"] > 0 and row["chunk_64"] is None
    assert summary["digits_8_auto_over_best_fixed"] == row["auto_over_best_fixed"] > 0
    assert math.isfinite(row["choosing_costs_steps"])
    assert summary["digits_8_choosing_costs_steps"] == row["choosing_costs_steps"]
