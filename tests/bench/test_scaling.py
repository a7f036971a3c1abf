import json

import pytest

from bench import scaling
from bench.tools.collectives import Collective

PAIRS = ((0, 1),)


def test_fitness_is_told_from_the_update():
    found = [
        Collective("all-gather", 256, PAIRS, name="jit(f)/sharding_constraint"),
        Collective("all-gather", 256, PAIRS, name="jit(f)/cond/branch_1_fun/add"),
        Collective("all-reduce", 40, PAIRS, times=3, name="jit(f)/cond/branch_1_fun/psum"),
    ]
    assert scaling.parts(found, 64) == {"operations": 3, "fitness_bytes": 256, "update_bytes": 256 + 120}


def test_a_run_has_a_row_for_every_number_of_devices(capsys, tmp_path, monkeypatch):
    asked = []

    def fresh_point(options, update, devices, population):
        asked.append((update, devices, population))
        bytes_ = {"fitness_bytes": 4 * population, "fitness_theory": 4 * population, "operations": 2}
        more = {"update_bytes": 108, "update_theory": 100, "seconds": 0.5 * devices}
        return {"devices": devices, "population": population, **bytes_, **more}

    monkeypatch.setattr(scaling, "fresh_point", fresh_point)
    arguments = ["--devices", "1", "4", "--population", "64", "--members", "16", "--out", str(tmp_path / "kept.json")]
    scaling.main(arguments)
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    once = [(1, 64), (4, 64), (1, 16)]  # of weak scaling, four devices have 64 members, too
    assert asked == [(update, *sizes) for update in ("members", "weights") for sizes in once]
    assert [r["time_ratio"] for r in found["rows"]] == [1, 4] * 4
    assert found["summary"] == {
        "fitness_bytes_beyond_theory": 0,
        "update_bytes_beyond_theory": 8,
        "strong_members_time_ratio_4": 4,
        "weak_members_time_ratio_4": 4,
        "strong_weights_time_ratio_4": 4,
        "weak_weights_time_ratio_4": 4,
    }


@pytest.mark.slow
def test_bytes_on_two_devices_are_what_theory_asks(capsys, tmp_path):
    """A quick run on two devices alone, where weak and strong scaling meet."""
    scaling.main(["--quick", "--devices", "2", "--out", str(tmp_path / "kept.json")])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(r["scaling"], r["devices"], r["population"]) for r in found["rows"]] == [
        ("strong", 2, 64),
        ("weak", 2, 64),
    ] * 2
    for r in found["rows"]:
        assert r["fitness_bytes"] == r["fitness_theory"] == 4 * 64
        assert 0 <= r["update_bytes"] - r["update_theory"] <= 8 * 6  # norms of six parameters
