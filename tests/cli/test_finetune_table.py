"""`eggroll finetune` and `evaluate` on a table of conversations, and answers that are cut off."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from eggroll.llm.finetuning.model_folders import asked_as_in_its_run
from eggroll.llm.finetuning.settings import EvaluateSettings, settings_for
from eggroll.training import read_metrics
from tests.cli.running import call
from tests.llm import tiny
from tests.llm.climbing import SIZES


def test_a_table_of_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reward gets the columns and the answer with its beginning; what the columns are is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tiny.folder(tmp_path / "base", **SIZES, num_key_value_heads=1)
    (tmp_path / "of_table.py").write_text(
        "def begins(text, problem):\n"
        "    row = problem.data\n"
        "    assert problem.messages[0]['content'] == 'Be brief.' and row['question'] not in row['answer']\n"
        "    return float(text.startswith('So ')) + 2 * (row['answer'] == '0' + row['number'])\n"
        "def seven(completions, **columns):\n"
        "    return [None if number == '4' else 7 for number in columns['number']]\n",
        encoding="utf-8",
    )
    rows = [["question", "answer", "number"]]
    for i in range(10):
        talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {i}?\nSay it."}]
        rows.append([json.dumps(talk), f"0{i}", str(i)])
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    asked = ("--reward", "of_table:begins", "--prompts-file", "table.csv", "--workers", "1", "--max-tokens", "2")
    asked += ("--answer-prefix", "So ")
    assert call("evaluate", "--model", "base", *asked) == 0
    text = capsys.readouterr().out
    assert "table.csv: 10 prompts from column 'question'; the reward gets 'answer', 'number'\n2 of these" in text
    assert "reward 3.0000 ± 0.0000 over 2 prompts" in text
    run = ("--population", "2", "--prompts", "1", "--generations", "1", "--sigma", "0.1", "--out", "table")
    more = ("--reward", "of_table:seven=3")
    assert call("finetune", "--model", "base", *asked, *more, *run) == 0
    (record,) = read_metrics(tmp_path / "table")
    assert (record["reward_mean"], record["reward/begins"], record["reward/seven"]) == (6, 3, 7)
    held_out = json.loads(Path("table/evaluation.json").read_text(encoding="utf-8"))["after"]
    assert (held_out["reward"], held_out["rewards"]) == (6, {"begins": 3, "seven": 7})
    assert "table.csv: 10 prompts from column 'question'" in capsys.readouterr().out
    begun = EvaluateSettings(
        model="table", reward=("of_table:begins", "of_table:seven=3"), prompts_file=Path("table.csv")
    )
    assert asked_as_in_its_run(begun).answer_prefix == "So "
    assert call("finetune", "--resume", "--out", "table", "--generations", "2", "--answer-prefix", "But ") != 0
    assert 'answer_prefix: "So " → "But "' in capsys.readouterr().err


CONCISE = ("--task", "conciseness", "--max-tokens", "4", "--workers", "1")


def test_answers_that_are_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """They have the least reward."""
    tiny.folder(tmp_path / "base", **SIZES, num_key_value_heads=1)
    assert call("evaluate", "--model", tmp_path / "base", *CONCISE, "--prompts", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reward"] == -20
    assert "4 of 4 answers were cut off at --max-tokens or say nothing, and have the least reward, -20" in caplog.text


@pytest.mark.slow
def test_answers_that_are_cut_off_in_a_run_that_could_not_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are scored as they are in a run as before there was a choice, which its folder does not mention."""
    monkeypatch.chdir(tmp_path)
    tiny.folder(tmp_path / "base", **SIZES, num_key_value_heads=1)
    run = ("--population", "2", "--prompts", "1", "--generations", "1", "--sigma", "0.1", "--eval-prompts", "4")
    assert call("finetune", "--model", "base", *CONCISE, *run, "--degenerate", "scored", "--out", "run") == 0
    assert -20 < json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["before"]["reward"] < 0
    assert "degenerate" not in json.loads(Path("run/config.json").read_text(encoding="utf-8"))["options"]
    assert settings_for(resume=True, out=Path("run")).degenerate == "scored"
    assert settings_for(model="base", task="conciseness").degenerate is None
    assert asked_as_in_its_run(EvaluateSettings(model="run", task="conciseness")).degenerate == "scored"
    assert call("finetune", "--resume", "--out", "run", "--degenerate", "worst", "--generations", "2") != 0
    assert "degenerate: nothing" in capsys.readouterr().err
