"""The model that a fine-tuning run leaves: the best on held-out prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eggroll.training import read_metrics
from tests.cli.running import call
from tests.cli.test_finetune import ASKED, OPTIONS, evaluation, write_inputs


@pytest.mark.slow
@pytest.mark.parametrize("worse", [False, True])
def test_the_best_held_out_model_is_what_a_run_leaves(
    worse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    out, more = tmp_path / "run", ("--learning-rate", "1000" if worse else "0.05", "--generations", "3")
    assert call("finetune", "--model", "base", *ASKED, *OPTIONS[:-2], *more, "--eval-every", "1", "--out", out) == 0
    found, said = evaluation(out), capsys.readouterr()
    rewards = [found["before"]["reward"], *(record["test_reward"] for record in read_metrics(out))]
    best = int(np.argmax(rewards))
    assert found["best"]["reward"] == max(rewards) and found["best"]["generation"] == best
    assert (best < 3) == (f"model/ is that of generation {best}, the best" in said.out)
    assert call("evaluate", "--model", out, *ASKED, "--json") == 0
    assert json.loads(capsys.readouterr().out)["reward"] == pytest.approx(max(rewards))
    assert call("finetune", "--resume", "--out", out, "--generations", "4") == 0
    again = evaluation(out)["best"]["reward"]
    assert again == max(*rewards, read_metrics(out)[-1]["test_reward"])
