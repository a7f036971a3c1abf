"""`bench.replay` times the update that a replay makes, and says whether it gave the run's bits."""

from __future__ import annotations

import json

import pytest

from bench import replay
from bench.tools.timing import Timing


@pytest.mark.slow
def test_quick_run(tmp_path, capsys):
    out = tmp_path / "replay.json"
    replay.main(["--quick", "--out", str(out)])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.read_text()) == printed
    (row,) = printed["rows"]
    assert row["bit_equal"] and printed["summary"]["all_bit_equal"]
    assert (row["population"], row["record_bytes"]) == (16, 88 + 8 * 16)
    numbers = 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert row["checkpoint_bytes"] == 3 * 4 * numbers + 4, "parameters, Adam's two moments and its count"


def test_the_ratio_is_of_the_replay_to_the_live_generation():
    class State:
        params, master, opt_state = (), (), ()

    timings = {"live": Timing("live", (4.0, 8.0, 4.0)), "replay": Timing("replay", (1.0, 2.0, 3.0))}
    found = replay.row("digits", 8, timings, State())
    assert (found["replay_over_live"], found["live_milliseconds"], found["replay_milliseconds"]) == (0.25, 4000, 2000)
