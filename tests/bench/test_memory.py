import json

import pytest

from bench import memory
from bench.tools.fresh import run_fresh

SMALL = ["--rows", "4", "--populations", "8"]


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)got exit status 1 .* bench\.nowhere --option:.*No module named"):
        run_fresh("bench.nowhere", "--option")


@pytest.mark.parametrize("point", ["step", "inference"])
def test_points_report_a_peak(capsys, point):
    memory.main([*SMALL, "--point", point])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["peak_bytes"] > 1e6
    assert ("chunk" in found) == (point == "step")


def test_the_summary_compares_the_largest_population_with_1024():
    rows = [{"population": p, "step_mb": mb} for p, mb in ((64, 90.0), (1024, 100.0), (16384, 110.0))]
    assert memory.summary(rows, 50_000_000) == {
        "base_mb": 50.0,
        "step_mb_at_16384": 110.0,
        "ratio_16384_to_1024": pytest.approx(1.1),
    }
    assert memory.summary(rows[:2], 0)["ratio_1024_to_64"] == pytest.approx(100 / 90)


def test_a_run_has_a_row_for_every_population(capsys, tmp_path, monkeypatch):
    peaks = {"base": 100e6, "step": 300e6, "inference": 200e6}
    asked = []

    def fresh_point(options, point, population):
        asked.append((point, population))
        return {"peak_bytes": peaks[point], "measured": "process", "chunk": 8}

    monkeypatch.setattr(memory, "fresh_point", fresh_point)
    memory.main(["--populations", "64", "128", "--inference-up-to", "64", "--out", str(tmp_path / "kept.json")])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(r["population"], r["step_above_base_mb"], r["inference_mb"]) for r in found["rows"]] == [
        (64, 200, 200),
        (128, 200, None),
    ]
    assert asked == [("base", 64), ("step", 64), ("inference", 64), ("step", 128)]


@pytest.mark.slow
def test_a_quick_run(capsys, tmp_path, monkeypatch):
    """Every point is a process of its own, which counts what it did: three of them."""
    monkeypatch.setattr(memory, "QUICK_POPULATIONS", (8,))
    memory.main(["--quick", "--rows", "4", "--out", str(tmp_path / "kept.json")])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    (row,) = found["rows"]
    assert row["population"] == 8 and row["measured"] in ("process", "device")
    if row["measured"] == "process":
        assert all(100 < mb < 2000 for mb in (found["summary"]["base_mb"], row["step_mb"], row["inference_mb"]))
