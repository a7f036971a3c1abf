"""`bench.tools.timing`: turns, repeats, medians and ratios."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from bench.tools.timing import Ratio, Timing, interleave, medians


def test_candidates_take_turns_after_a_warm_up():
    calls = []
    interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, least_seconds=0.0)
    assert calls == ["a", "a", "b", "b", *["a", "b"] * 3]  # compile and estimate, then A B A B


def test_a_turn_is_filled_and_its_seconds_are_per_call(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr("bench.tools.timing.time.perf_counter", lambda: clock[0])

    def call() -> None:
        calls.append(0)
        clock[0] += 10.0 if len(calls) == 1 else 0.25  # the first call compiles

    timing = interleave({"a": call}, rounds=3, least_seconds=1.0)["a"]
    assert timing.seconds == (0.25, 0.25, 0.25)
    assert len(calls) == 2 + 3 * 4


def test_results_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr("bench.tools.timing.jax.block_until_ready", waited.append)
    value = jnp.ones(2)
    interleave({"a": lambda: value}, rounds=2, least_seconds=0.0)
    assert len(waited) == 4 and all(x is value for x in waited)


def test_on_an_accelerator_a_turn_waits_for_its_last_call(monkeypatch):
    clock, events = [0.0], []
    monkeypatch.setattr("bench.tools.timing.jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("bench.tools.timing.jax.block_until_ready", lambda _: events.append("wait"))
    monkeypatch.setattr("bench.tools.timing.time.perf_counter", lambda: clock[0])

    def call() -> None:
        events.append("call")
        clock[0] += 0.25

    assert interleave({"a": call}, rounds=1, least_seconds=1.0)["a"].seconds == (0.25,)
    assert events == ["call", "wait"] * 2 + ["call"] * 4 + ["wait"]


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    # A slow second round hits both: the ratio of each round is 2, 2, 3, 2, 5.
    slow, fast = Timing("slow", (2, 20, 3, 2, 5)), Timing("fast", (1, 10, 1, 1, 1))
    assert slow.ratio(fast) == Ratio(2.0, 2.0, 3.0)
    assert str(slow.ratio(fast)) == "2.00 (2.00-3.00)"
    assert medians([slow, fast]) == {"slow": 3.0, "fast": 1.0}


def test_rounds_of_different_number_do_not_compare():
    with pytest.raises(ValueError):
        Timing("a", (1.0, 2.0)).ratio(Timing("b", (1.0, 2.0, 3.0)))
