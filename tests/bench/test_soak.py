"""The soak runs, watches its process, and would see drift."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import soak
from eggroll.training import Result


@pytest.mark.slow
def test_a_quick_soak_is_whole(capsys):
    soak.main(["--quick"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    summary = found["summary"]
    assert summary["generations"] == 90 and summary["replays_compared"] == 3
    assert summary["bytes_that_differ"] == 0
    assert [row["generation"] for row in found["rows"]] == [30, 60, 90]
    assert all(row["numbers"] > 3000 for row in found["rows"])
    assert all(note["resident_mb"] > 50 and note["threads"] >= 1 for note in found["series"])
    assert 100 < summary["ledger_bytes_per_generation"] < 1000


def test_growth_is_seen():
    notes = [
        {"generation": g, "resident_mb": 100 + g / 1000, "threads": 9, "files": 7, "arrays": 5}
        for g in range(0, 2001, 100)
    ]
    options = soak.Options(generations=2000)
    rows = [{"bytes_that_differ": 0}, {"bytes_that_differ": 3}]
    result = Result(type("State", (), {"generation": 2000})(), (), "finished", 10.0, 0)  # type: ignore[arg-type]
    found = soak.summary(options, notes, rows, {"ledger.bin": 4000}, result)
    assert found["mb_per_10000_generations_in_the_second_half"] == pytest.approx(10)
    assert found["with_95_percent_between"] == pytest.approx([10, 10], abs=1e-6)
    assert (found["bytes_that_differ"], found["ledger_bytes_per_generation"]) == (3, 2)


def test_memory_that_only_wavers_is_flat():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        notes = [{"generation": g, "resident_mb": 500 + rng.normal()} for g in range(10_000, 20_000, 100)]
        _, least, most = soak.growth(notes)
        covered += least < 0 < most
    assert 180 <= covered <= 199  # 95 % of 200 are 190; outside of this once in 800
