"""`bench.decode`: a quick run, and the figures that it makes of times."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import decode
from bench.tools.timing import Timing


def test_figures_come_from_the_times():
    timings = {
        "plain": Timing("plain", (1.0, 1.0, 2.0)),
        "eggroll": Timing("eggroll", (1.25, 1.25, 2.5)),
        "eggroll_update": Timing("eggroll_update", (0.25, 0.25, 0.5)),
        "full_rank": Timing("full_rank", (0.5, 0.5, 1.0)),
        "full_rank_update": Timing("full_rank_update", (0.25, 0.25, 0.5)),
    }
    found = decode.row(decode.Options(population=256, prompts=2, tokens=10, full_rank_members=4), timings)
    assert found["plain_tokens_per_second"] == 5120 and found["eggroll_tokens_per_second"] == 4096
    assert found["percent_of_plain"] == pytest.approx(80)
    assert found["generations_per_second"] == pytest.approx(1 / 1.5)
    assert found["full_rank_generations_per_second"] == pytest.approx(1 / (64 * 0.75))
    assert found["generations_over_full_rank"] == pytest.approx(0.5 * 64)


def test_waste_is_what_counting_by_hand_says():
    """Of 20 answers a fifth run to 256 tokens and the others stop at 10."""
    lengths = np.array([256, 10, 10, 10, 10] * 20)  # of 100
    written = 20 * 256 + 80 * 10
    found = decode.wastes([lengths], 256)
    assert found["together"] == pytest.approx(100 * (1 - written / (100 * 256)))
    assert found["segments"] == pytest.approx(100 * (1 - written / (100 * 10 + 20 * 246)))
    assert decode.slotted(np.array([3, 1, 1, 2]), 2) == 2 * 4


@pytest.mark.slow
def test_a_quick_run(capsys):
    decode.main(["--quick"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    assert summary["percent_of_plain"] > 0 and summary["generations_over_full_rank"] > 0
    assert summary["bytes_of_a_member"] > 0 and summary["segments_over_together"] > 0
