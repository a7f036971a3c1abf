"""Which model a run leaves: the best on held-out prompts, or the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eggroll.llm.finetuning import model_folders
from eggroll.llm.finetuning.model_folders import Delivered

START = {"reward": 0.5, "error": 0.1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, of which `config.json` says which parameters were written last."""

    def write(language: Any, folder: Path, params: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(params)

    monkeypatch.setattr(model_folders, "write_model", write)
    return tmp_path / "model"


def run(folder: Path, rewards: dict[int, float | None], *, best: bool = True, found: Any = None) -> Delivered:
    """What evaluations after these generations lead to, the last of which ends the run."""
    given: Any = Delivered(None, folder, best=best)  # type: ignore[arg-type]
    given.begin(START, found)
    for generation, reward in rewards.items():
        given.offer(f"of {generation}", generation, {"reward": reward, "error": 0.0})
    given.end(f"of {generation}", generation, {"reward": reward, "error": 0.0}, "base")
    return given


def left(folder: Path) -> str:
    return (folder / "config.json").read_text()


@pytest.mark.parametrize(
    ("rewards", "best", "expected"),
    [
        ({1: 0.6, 2: 0.9, 3: 0.7}, True, (2, "of 2", 0.9)),
        ({1: 0.6, 2: None, 3: 0.6}, True, (1, "of 1", 0.6)),
        ({1: 0.5, 2: 0.1}, True, (0, "base", 0.5)),
        ({1: 0.9, 2: 0.1}, False, (2, "of 2", 0.1)),
    ],
)
def test_it_is_the_first_of_the_best_or_what_the_run_began_with(folder, rewards, best, expected, caplog):
    given = run(folder, rewards, best=best)
    assert (given.generation, left(folder), given.numbers["reward"]) == expected
    assert ("was better than the start" in caplog.text) == (given.generation == 0)


def test_a_run_that_goes_on_keeps_what_was_better(folder):
    before = run(folder, {1: 0.9, 2: 0.6})
    assert run(folder, {3: 0.7}, found=before.record()["best"]).generation == 1 and left(folder) == "of 1"
    (folder / "config.json").unlink()  # and there is nothing to keep
    assert run(folder, {3: 0.7}, found=before.record()["best"]).generation == 3 and left(folder) == "of 3"


def test_an_error_leaves_the_best_or_what_there_is(folder):
    given: Any = Delivered(None, folder, best=True)  # type: ignore[arg-type]
    given.begin(START, None)
    given.lost("of 1")
    assert left(folder) == "of 1"
    given.offer("of 2", 2, {"reward": 0.9})
    given.lost("of 3")
    assert left(folder) == "of 2"
