"""Which kernels a run used is in its ledger, and the same in all of its processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from eggroll.ops import registry
from eggroll.training import RunError, fit, processes, replay
from eggroll.training.ledger.format import Settings
from eggroll.training.ledger.reader import Reader
from eggroll.training.processes import deciding
from tests.training.problems import batches, begin, fitness, usual

KIND = "rank_update mosaic_tpu, rademacher, float32, rank 1"


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have had kernels tried."""
    for kind in list(registry.chosen):
        monkeypatch.delitem(registry.chosen, kind)


def settings_in(folder: Path) -> list[dict]:
    return [entry.content for entry in Reader(folder / "ledger.bin") if isinstance(entry, Settings)]


def test_a_ledger_says_which_kernels_were_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a replay does not mind; without a kernel there is no word of any, as before."""
    es = usual()
    fit(es, begin(es), fitness, batches(), generations=2, folder=tmp_path / "plain")
    assert all("kernels" not in content for content in settings_in(tmp_path / "plain"))
    monkeypatch.setitem(registry.chosen, KIND, "refused")
    es = usual()
    result = fit(es, begin(es), fitness, batches(), generations=2, folder=tmp_path / "run")
    (content,) = settings_in(tmp_path / "run")
    assert content["kernels"] == {KIND: "refused"}
    found = replay(begin(es).params, tmp_path / "run" / "ledger.bin", optimizer=es.optimizer)
    for got, want in zip(*map(jax.tree.leaves, (found.params, result.state.params)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_processes_compare_their_kernels_once_they_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(processes, "same", lambda value, what, *advice: compared.append((what, value, *advice)))
    monkeypatch.setitem(registry.chosen, KIND, "used")
    es = usual()
    fit(es, begin(es), fitness, batches(), generations=3)
    ((_, value, advice),) = [each for each in compared if each[0] == "kernels"]
    assert value == {KIND: "used"} and "EGGROLL_KERNELS=off" in advice
    assert [each[0] for each in compared].index("kernels") == 1  # after the data of the first generation


def test_a_kernel_that_one_process_refused_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = {KIND: "used"}, {KIND: "refused"}
    digests = [hashlib.sha256(json.dumps(each, sort_keys=True).encode()).digest() for each in (mine, other)]
    monkeypatch.setattr(deciding, "count", lambda: 2)
    monkeypatch.setattr(deciding, "gather", lambda _: np.stack([np.frombuffer(each, np.uint8) for each in digests]))
    monkeypatch.setattr(deciding, "gather_json", lambda _: [mine, other])
    with pytest.raises(
        RunError, match=r"got kernels .* process 1 of 2 .*rank 1: .used. → .refused. .* Switch them off\.$"
    ):
        processes.same(mine, "kernels", "Switch them off.")
