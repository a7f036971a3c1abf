"""The command really makes a model better: from prompts and a reward in files to the score of the model folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import call
from tests.cli.test_finetune import evaluation, write_inputs

SEEDS = 2
BLIND = """
import hashlib

def blind(text, problem):
    return int(hashlib.sha256((text + problem.prompt).encode()).hexdigest()[:8], 16) / 2**32
"""
METHODS = {
    "eggroll": ("--population", "64", "--learning-rate", "0.06", "--groups", "4"),
    "full-rank": ("--population", "30", "--learning-rate", "0.4"),
}
OPTIONS = ("--sigma", "0.1", "--prompts", "4", "--generations", "8", "--eval-every", "8", "--max-tokens", "6")
ASKED = ("--prompts-file", "prompts.jsonl", "--workers", "1")


def score(model: str, capsys: pytest.CaptureFixture[str]) -> float:
    """What `eggroll evaluate` says of a folder, on held-out prompts."""
    capsys.readouterr()
    assert (
        call("evaluate", "--model", model, "--reward", "my_rewards:letters", *ASKED, "--max-tokens", "6", "--json") == 0
    )
    return json.loads(capsys.readouterr().out)["reward"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_command_makes_a_model_better(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run has a control: the same command with a reward that tells nothing of the one that is tested.

    Were fitness not used, or used wrongly, a run and its control would be exchangeable, and all `SEEDS` runs end higher
    than theirs with a probability of at most 2^-2, and hardly ever by so much: `finetuning/test_learning.py`
    compares more runs, without the command.
    """
    write_inputs(tmp_path)
    with (tmp_path / "my_rewards.py").open("a", encoding="utf-8") as file:
        file.write(BLIND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    gains = []
    for seed in range(SEEDS):
        for reward in ("letters", "blind"):
            run = f"{reward}-{seed}"
            options = (*METHODS[method], *OPTIONS, *ASKED, "--reward", f"my_rewards:{reward}", "--seed", str(seed))
            assert call("finetune", "--model", "base", "--method", method, *options, "--out", run) == 0
        found, control = evaluation(Path(f"letters-{seed}")), score(f"blind-{seed}/model", capsys)
        before, after = found["before"]["reward"], found["after"]["reward"]  # as `evaluate` says: `test_finetune.py`
        assert after > control, f"seed {seed}: {after} and {control}"
        gains.append(after - before)
    assert np.mean(gains) > 0.3, gains
