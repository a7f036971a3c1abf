import json

import pytest

from bench import memory
from bench.tools.fresh import run_fresh

SMALL = ["--rows", "4", "--populations", "8"]


@pytest.mark.slow
def test_a_point_is_a_process_of_its_own_and_counts_what_it_did():
    base = memory.fresh_point(memory.Options(rows=4), "base", 8)
    assert base["measured"] in ("process", "device")
    if base["measured"] == "process":
        assert 100e6 < base["peak_bytes"] < 2e9


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)got exit status .* bench\.memory .*--no-such-option"):
        run_fresh("bench.memory", "--no-such-option")


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
def test_a_quick_run(capsys, tmp_path):
    memory.main(["--quick", "--out", str(tmp_path / "kept.json")])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["population"] for row in found["rows"]] == list(memory.QUICK_POPULATIONS)
    assert all(row["step_mb"] > 0 for row in found["rows"])
