"""Several rewards with weights, batched, asynchronous and in TRL's form: against the weighted mean by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import custom_task
from eggroll.training.errors import RunError

REWARDS = """
import asyncio

def one(text, problem):
    return len(text)

def sometimes(text, problem):
    return None if "b" in text else 10

async def later(text, problem):
    await asyncio.sleep(0.01)
    return float(text.count("a"))

def together(texts, problems):
    assert len(texts) == len(problems)
    return [len(texts)] * len(texts)

def of_trl(completions, prompts, answer, **columns):
    assert "prompt" not in columns and len(columns["level"]) == len(prompts) == len(completions) == len(answer)
    if isinstance(prompts[0], list):
        assert prompts[0][-1]["role"] == "user" and completions[0][0]["role"] == "assistant"
        completions = [messages[0]["content"] for messages in completions]
    return [None if said == "c" else float(said == right) for said, right in zip(completions, answer)]

async def of_trl_later(prompts, completions, **kwargs):
    return [2.0] * len(prompts)

def breaks(completions, **kwargs):
    if "bad" in completions:
        raise ValueError("bad is in it")
    return [1.0] * len(completions)

def never(text, problem):
    return None

def short(completions, **kwargs):
    return [1.0]

def asks(completions, reference):
    return [0.0] * len(completions)

class Judge:
    def __call__(self, text, problem):
        return 5

class Needs:
    def __init__(self, model):
        pass
"""
TEXTS = ["a", "bb", "c", "aaa"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with rewards and prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "several_rewards.py").write_text(REWARDS, encoding="utf-8")
    rows = [{"prompt": f"{i}?", "answer": "a", "level": i} for i in range(5)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    talk = [{"messages": [{"role": "user", "content": f"{i}?"}], "answer": "a", "level": i} for i in range(5)]
    (tmp_path / "talk.json").write_text(json.dumps(talk), encoding="utf-8")
    yield tmp_path
    sys.modules.pop("several_rewards", None)


def score(*rewards: Any, texts: list[str] = TEXTS, prompts: str = "p.jsonl", workers: int = 1) -> Any:
    names = [f"several_rewards:{each}" if isinstance(each, str) else each for each in rewards]
    task = custom_task(reward=names if len(names) > 1 else names[0], prompts=prompts)
    with Scorers(task.scored_by, workers=workers, seconds=30) as scorers:
        return scorers.attempt(texts, task.problems("train", 4, 0))


def test_the_weighted_mean_is_over_the_rewards_that_apply(folder: Path) -> None:
    found = score("one", "sometimes=3", "later=0.5", "of_trl")
    one, some, later, trl = [1, 2, 1, 3], [10, np.nan, 10, 10], [1, 0, 0, 3], [1, 0, np.nan, 0]
    table, weights = np.array([one, some, later, trl], float), np.array([1, 3, 0.5, 1])[:, None]
    known = ~np.isnan(table)
    np.testing.assert_allclose(found.values, np.where(known, table * weights, 0).sum(0) / (known * weights).sum(0))
    assert list(found.parts) == ["one", "sometimes", "later", "of_trl"] and not found.failed
    np.testing.assert_array_equal(np.array(list(found.parts.values())), table)


@pytest.mark.parametrize("prompts", ["p.jsonl", "talk.json"])
def test_trl_alone_with_texts_and_with_messages(folder: Path, prompts: str) -> None:
    found = score("of_trl", prompts=prompts)
    np.testing.assert_array_equal(found.values, [1, 0, np.nan, 0])
    assert found.failures.tolist() == [False, False, True, False]
    assert "returned None, which says that a reward does not apply" in found.error


def test_batches_classes_callables_and_names(folder: Path) -> None:
    factor = 2
    found = score("together", "Judge", lambda text, problem: factor * len(text), "of_trl_later", "Judge")
    assert list(found.parts) == ["together", "Judge", "<lambda>", "of_trl_later", "Judge_2"]
    assert found.values.tolist() == [(4 + 5 + 2 * len(text) + 2 + 5) / 5 for text in TEXTS]
    assert score("Judge", workers=2).values.tolist() == [5] * 4


def test_a_batch_that_fails_costs_its_answer_alone(folder: Path) -> None:
    found = score("breaks", "one", texts=["a", "bad", "c", "dd"])
    assert found.values[[0, 2, 3]].tolist() == [1, 1, 1.5] and found.failures.tolist() == [False, True, False, False]
    assert "answer 2 of 4" in found.error and "ValueError: bad is in it" in found.error
    assert score("never", "sometimes", texts=["b", "a", "a", "a"]).failures.tolist() == [True, False, False, False]
    assert score("short", texts=["a"] * 4).values.tolist() == [1] * 4  # each alone, where one number is right


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("one=0", "the weight '0'; a finite number > 0"),
        ("one=much", "the weight 'much'"),
        ("Needs", "the class 'Needs' of a reward cannot be made without arguments"),
        ("asks", "the reward 'asks' asks for 'reference', and the prompts have the columns 'answer', 'level'"),
    ],
)
def test_what_is_refused(folder: Path, reward: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        custom_task(reward=["several_rewards:one", f"several_rewards:{reward}"], prompts="p.jsonl")
