"""`bench.decode`: a quick run, and the figures that it makes of times."""

from __future__ import annotations

import json

import pytest

from bench import decode
from bench.timing import Timing


def test_figures_come_from_the_times():
    timings = {
        "plain": Timing("plain", (1.0, 1.0, 2.0)),
        "eggroll": Timing("eggroll", (1.25, 1.25, 2.5)),
        "full_rank": Timing("full_rank", (0.5, 0.5, 1.0)),
    }
    found = decode.row(decode.Options(population=256, prompts=2, tokens=10, full_rank_members=4), timings)
    assert found["plain_tokens_per_second"] == 5120 and found["eggroll_tokens_per_second"] == 4096
    assert found["percent_of_plain"] == pytest.approx(80)
    assert found["evaluations_over_full_rank"] == pytest.approx(0.4 * 64)


@pytest.mark.slow
def test_a_quick_run(capsys):
    decode.main(["--quick"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    assert summary["percent_of_plain"] > 0 and summary["evaluations_over_full_rank"] > 0
    assert summary["bytes_of_a_member"] > 0
