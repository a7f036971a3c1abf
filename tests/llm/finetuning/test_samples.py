"""The file of samples holds each generation once, and no interruption that was gone on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.parquet import read_table

from eggroll.llm.answers.prompts import Prompts
from eggroll.llm.finetuning.evaluation import Measured
from eggroll.llm.finetuning.questions import Questions
from eggroll.llm.finetuning.samples import Completions, Samples
from eggroll.llm.finetuning.statistics import Statistics
from eggroll.llm.tasks import Problem


def measured(text: str) -> Measured:
    return Measured(1.0, 0.0, Statistics(1.0, 1, 1, 0.0, 0.0, 0.5), 1.0, 0, (text, text), (1.0, 1.0))


def record(folder: Path, *records: dict[str, Any]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def test_what_a_run_goes_on_from_is_replaced(tmp_path: Path) -> None:
    asked = Questions((Problem("One."), Problem("Two.")), Prompts(np.zeros((2, 1)), np.zeros(2)))
    samples = Samples(tmp_path, asked, 1)

    def answers() -> list[tuple[int, str]]:
        return [(line["generation"], line["answer"]) for line in samples.read()]

    lines = [{"generation": 1, "test_reward": 0.5}, {"generation": 2}, {"generation": 3, "test_reward": None}]
    record(tmp_path)
    samples.add(0, measured("a"))
    samples.add(1, measured("b"))
    record(tmp_path, *lines[:2])
    samples.add(2, measured("interrupted"))
    assert answers() == [(0, "a"), (1, "b"), (2, "interrupted")]
    record(tmp_path, *lines)
    samples.add(3, measured("c"))
    samples.add(4, measured("d"))
    assert answers() == [(0, "a"), (1, "b"), (3, "c"), (4, "d")]
    samples.add(1, measured("anew"))
    assert answers() == [(0, "a"), (1, "anew")]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_all_answers_of_a_generation_are_a_file(form: str, tmp_path: Path) -> None:
    columns = {"member": [0, 1], "prompt": ["Größe?", "Two"], "completion": ["a\n", ""], "polite": [0.5, np.nan]}
    written = Completions(tmp_path, form)
    for rewards in ([1.0, 2.0], [3.0, 4.0]):  # made again after a kill
        written.write(12, columns | {"reward": rewards})
    file = tmp_path / "completions" / f"completions_00012.{form}"
    assert list((tmp_path / "completions").iterdir()) == [file]
    lines = file.read_text(encoding="utf-8").splitlines() if form == "jsonl" else []
    found = [json.loads(line) for line in lines] or read_table(file).to_pylist()
    assert found == [
        {"step": 12, "member": 0, "prompt": "Größe?", "completion": "a\n", "polite": 0.5, "reward": 3.0},
        {"step": 12, "member": 1, "prompt": "Two", "completion": "", "polite": None, "reward": 4.0},
    ]
