"""Questions: which are asked in a generation, and how they are encoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eggroll.llm.finetuning.questions import chosen, questions, task_of
from eggroll.llm.finetuning.settings import settings_for
from eggroll.llm.tasks import Problem, task_named
from eggroll.llm.tasks.base import Listed, too_few
from eggroll.training import RunError
from tests.llm.climbing import language

OWN = settings_for(task=None, model="m", reward="operator:contains", prompts_file=Path("prompts.txt"))


def test_a_pass_asks_every_question_once_in_an_order_of_its_own() -> None:
    rounds = np.array([chosen(12, 4, generation, seed=3) for generation in range(6)]).reshape(2, 12)
    assert [sorted(turn) for turn in rounds.tolist()] == [list(range(12))] * 2
    assert rounds[0].tolist() != rounds[1].tolist()
    assert Counter(chosen(10, 10, 7, seed=3).tolist()) == Counter(range(10))
    np.testing.assert_array_equal(chosen(10, 4, 3, seed=3), chosen(10, 4, 3, seed=3))
    assert chosen(1000, 8, 0, seed=3).tolist() != chosen(1000, 8, 0, seed=4).tolist()


@pytest.mark.parametrize(("pool", "count"), [(15, 8), (9, 8), (10, 4), (5, 5)])
def test_no_question_twice_in_a_generation_and_none_left_out_for_ever(pool: int, count: int) -> None:
    rounds = [chosen(pool, count, generation, seed=3).tolist() for generation in range(60)]
    assert all(len(set(numbers)) == count for numbers in rounds)
    assert {number for numbers in rounds for number in numbers} == set(range(pool))
    with pytest.raises(ValueError, match=f"count={pool + 1} of pool={pool}"):
        chosen(pool, pool + 1, 0, seed=3)


def test_questions_are_rows_of_one_length() -> None:
    model, task = language(), task_named("arithmetic")
    asked = questions(model, task, "train", 5, seed=0)
    assert asked.prompts.tokens.shape[0] == len(asked) == 5 and min(asked.prompts.start) == 0  # no wider than need be
    two = asked.take([3, 1])
    assert two.problems == (asked.problems[3], asked.problems[1])
    text = model.tokenizer.decode(two.prompts.tokens[0, two.prompts.start[0] :])
    assert two.problems[0].prompt in text and text.endswith("<|im_start|>assistant\n")


def test_a_prompt_beyond_the_context_is_named() -> None:
    with pytest.raises(RunError, match=r"prompt 0 .* of \d+ tokens.* the model's context of 128"):
        questions(language(), task_named("arithmetic", max_tokens=120), "train", 2, seed=0)


def test_more_questions_than_there_are() -> None:
    task = task_named("arithmetic", largest=2, operations="+")
    with pytest.raises(RunError, match="different problems to train on"):
        questions(language(), task, "train", 1000, seed=0)
    problems = {problem.prompt for problem in questions(language(), task, "train", None, seed=0).problems}
    assert 1 <= len(problems) <= 9 and problems <= {f"What is {a} + {b}?" for a in range(3) for b in range(3)}


def test_problems_that_were_found_are_not_drawn_again() -> None:
    """Another number of problems may be drawn otherwise, and find fewer."""

    class Few(Listed):
        name = "few"

        def problems(self, split: Any, count: int, seed: int) -> list[Problem]:
            raise too_few(self.name, split, 2, count, self._problems[split])

        def reward(self, text: str, problem: Problem) -> float:
            return 0.0

    few = Few([Problem("1 + 1 ="), Problem("2 + 2 =")], [])
    assert [p.prompt for p in questions(language(), few, "train", None, seed=0).problems] == ["1 + 1 =", "2 + 2 ="]


def test_options_of_the_chat_template_reach_it() -> None:
    model, task = language(), task_named("conciseness", max_tokens=4)
    plain, marked = (
        questions(model, task, "test", 2, seed=0, template=template).prompts
        for template in (None, {"add_generation_prompt": False})
    )
    assert marked.tokens.shape[1] < plain.tokens.shape[1]


def test_a_task_is_what_was_asked_for(tmp_path: Path) -> None:
    options = ("largest=5",)
    task = task_of(settings_for(model="m", task="arithmetic", task_options=options, max_tokens=3, system="Be brief."))
    assert (task.name, task.max_tokens, task.system) == ("arithmetic", 3, "Be brief.")
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    own = task_of(settings_for(task=None, model="m", reward="operator:contains", prompts_file=tmp_path / "prompts.txt"))
    assert (own.name, own.size("train"), own.size("test")) == ("contains", 2, 1)
    for option in ("foo", "reward", "name"):
        with pytest.raises(RunError, match=f"a reward of your own has no option '{option}'; it has system"):
            task_of(replace(OWN, prompts_file=tmp_path / "prompts.txt", task_options=(f"{option}=1",)))
    for option in ("max_tokens=abc", "max_tokens=0", "system=5"):
        with pytest.raises(RunError, match=rf"'operator:contains' cannot be made: got {option.split('=')[0]}="):
            task_of(replace(OWN, prompts_file=tmp_path / "prompts.txt", task_options=(option,)))
    with pytest.raises(RunError, match="no task 'conciseness_'"):
        task_of(settings_for(model="m", task="conciseness_"))
