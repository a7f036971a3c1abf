"""A reward function and a file of prompts of one's own."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter

import pytest

from eggroll import importing
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import custom_task
from eggroll.training.errors import RunError

REWARDS = """
import helper_of_my_rewards

SCALE = 2

def length(text, problem):
    return -abs(len(text) - problem.data["length"]) * helper_of_my_rewards.SCALE

def word(text, problem):
    return "seven"

class Judge:
    def __call__(self, text, problem):
        return 3.0

judge = Judge()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a module of rewards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)  # another test's
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "helper_of_my_rewards.py").write_text("SCALE = 1")
    yield tmp_path
    for name in ("my_rewards", "helper_of_my_rewards", "broken", "needy"):
        sys.modules.pop(name, None)


def write(folder, *rows, name="prompts.jsonl"):
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder / name


def rows(count):
    return [{"prompt": f"Write {k} characters.", "length": k} for k in range(count)]


def test_the_function_scores_in_another_process(folder):
    task = custom_task(reward="my_rewards:length", prompts=write(folder, *rows(10)), system="Count.", max_tokens=5)
    assert (task.name, task.system, task.max_tokens) == ("length", "Count.", 5)
    assert task.size("train") == 8 and task.size("test") == 2
    problems = task.problems("train", 8, seed=0)
    assert len(pickle.dumps(task)) < 300  # the prompts stay at home
    with Scorers(task.reward, workers=1) as scorers:
        rewards = scorers.score(["xxx"] * 8, problems)
    assert rewards.values.tolist() == [-abs(3 - problem.data["length"]) for problem in problems]


def test_a_reward_that_returns_a_string_says_so(folder):
    task = custom_task(reward="my_rewards:word", prompts=write(folder, "One.", "Two.", name="prompts.txt"))
    said = "failed for all 1 answers; the first: answer 1 of 1, to '(One|Two).': returned the string 'seven'; a finite"
    with Scorers(task.reward, workers=1) as scorers, pytest.raises(RunError, match=said):
        scorers.score(["x"], task.problems("train", 1, seed=0))


def test_objects_that_can_be_called_are_rewards(folder):
    task = custom_task(reward="my_rewards:judge", prompts=write(folder, "One.", "Two.", name="prompts.txt"))
    with Scorers(task.reward, workers=1) as scorers:
        assert scorers.score(["x"], task.problems("test", 1, seed=0)).values.tolist() == [3]


def test_prompts_of_a_text_file(folder):
    file = write(folder, "  First. ", "", "\ufeffSecond.", "First.", name="prompts.txt")
    task = custom_task(reward="my_rewards:length", prompts=str(file))
    found = [p.prompt for split in ("train", "test") for p in task.problems(split, task.size(split), 0)]
    assert sorted(found) == sorted(["First.", "\ufeffSecond.", "First."])
    assert all(p.data == {"prompt": p.prompt} for p in task.problems("train", task.size("train"), 0))


def test_unusual_line_ends_stand_within_a_prompt(folder):
    file = folder / "prompts.jsonl"
    file.write_bytes('{"prompt": "a\u2028b"}\r\n{"prompt": "c\x85d"}\r\n'.encode())
    task = custom_task(reward="my_rewards:length", prompts=file)
    assert {p.prompt for s in ("train", "test") for p in task.problems(s, 1, 0)} == {"a\u2028b", "c\x85d"}


def test_test_prompts_of_their_own(folder):
    test = write(folder, {"prompt": "Another.", "length": 1}, name="test.jsonl")
    task = custom_task(reward="my_rewards:length", prompts=write(folder, *rows(3)), test_prompts=test)
    assert (task.size("train"), task.size("test")) == (3, 1)
    with pytest.raises(RunError, match=r"1 prompts stand both in .*, for example 'Write 0 characters.'"):
        custom_task(
            reward="my_rewards:length",
            prompts=write(folder, *rows(3)),
            test_prompts=write(folder, *rows(1), name="t.jsonl"),
        )


def test_several_sets_to_test_on(folder):
    few = write(folder, *({"prompt": f"Few {i}.", "length": 2} for i in range(2)), name="few.jsonl")
    many = write(folder, *({"prompt": f"Many {i}.", "length": 3} for i in range(30)), name="many.jsonl")
    made = {"reward": "my_rewards:length", "prompts": write(folder, *rows(3))}
    task = custom_task(**made, test_prompts=[few, many])
    assert Counter(p.of for p in task.problems("test", 12, seed=0)) == {"few": 2, "many": 10}
    assert {p.of for p in task.problems("train", 3, seed=0)} == {""} and len(task.said) == 3
    other = folder / "other"
    other.mkdir()
    for clash in ([few, few.rename(other / "few.jsonl")], [many, write(folder, *rows(1), name="length.txt")]):
        with pytest.raises(RunError, match="is the name of two of them, or of a reward"):
            custom_task(**made, test_prompts=clash)


def test_more_prompts_than_there_are(folder):
    task = custom_task(reward="my_rewards:length", prompts=write(folder, *rows(10)))
    with pytest.raises(RunError, match="the task 'length' has 8 different problems to train on, and 9 were asked for"):
        task.problems("train", 9, seed=0)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("my_rewards", "got the reward 'my_rewards'; reward=\"module:function\" is required"),
        (":length", 'reward="module:function" is required'),
        ("my_rewards:", 'reward="module:function" is required'),
        ("my_rewards:a.b", 'reward="module:function" is required'),
        (
            "my_reward:length",
            r"no module 'my_reward' for .*, neither in .* nor where Python looks; .* a file my_reward.py",
        ),
        ("my_rewards.deep:length", "no module 'my_rewards.deep'"),
        ("my_rewards:lenght", r"'lenght' in .*my_rewards.py is no such name"),
        ("my_rewards:SCALE", r"'SCALE' in .*my_rewards.py is a int, not a function"),
        ("broken:f", r"importing 'broken' .* failed: SyntaxError"),
        ("needy:f", r"the module 'needy' .* needs 'no_such_package'"),
        ("leaving:f", r"importing 'leaving' for .* failed: SystemExit: 3; a module must not end the process"),
        (
            "leaving_at_once:f",
            r"importing 'leaving_at_once' for .* failed: it ended the process, by status 0; a module",
        ),
        ("killed:f=2", r"importing 'killed' for the reward 'killed:f' failed: it ended .* by signal Killed"),
        ("interrupted:f", r"importing 'interrupted' for .* failed: it ended the process, by signal Interrupt"),
        ("silent:f", r"importing 'silent' for .* failed: it closed standard input, output or error; leave them open"),
        ("leaving_deeper:f", r"importing 'leaving_deeper' for .* failed: SystemExit: 3"),
        ("odd:f", r"importing 'odd' for .* failed: GeneratorExit\."),
    ],
)
def test_rewards_that_are_not_there(folder, reward, said):
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "needy.py").write_text("import no_such_package\n")
    (folder / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "leaving_at_once.py").write_text("import os\nos._exit(0)\n")
    (folder / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    (folder / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    (folder / "silent.py").write_text("import sys\nsys.stderr.close()\n")
    (folder / "leaving_deeper.py").write_text("import leaving\n")
    (folder / "odd.py").write_text("raise GeneratorExit\n")
    with pytest.raises(RunError, match=said):
        custom_task(reward=reward, prompts=write(folder, *rows(3)))


def test_a_module_that_is_never_imported_or_twice(folder, monkeypatch):
    monkeypatch.setattr(importing, "TRIAL", 0.5)
    (folder / "endless.py").write_text("while True: pass\n")
    with pytest.raises(RunError, match=r"importing 'endless' for .* failed: it took longer than 0\.5 s; what takes"):
        custom_task(reward="endless:f", prompts=write(folder, *rows(3)))
    (folder / "forking.py").write_text("import os\nos.fork()\nf = print\n")
    code = "from eggroll.importing import function_named; function_named('forking:f', '', '', '')('here')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"here\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 3 of .*prompts.jsonl is no JSON"),
        ("[1, 2]", r"line 3 of .* is '\[1, 2\]'; an object with a string \"prompt\" is required"),
        ('{"question": "x"}', "line 3 of .*prompt"),
        ('{"prompt": 5}', "line 3 of .*prompt"),
        ('{"prompt": " "}', "line 3 of .*prompt"),
        ("[" * 100_000, "line 3 of .*prompts.jsonl is no JSON"),
    ],
)
def test_malformed_lines_are_named(folder, line, said):
    with pytest.raises(RunError, match=said):
        custom_task(reward="my_rewards:length", prompts=write(folder, {"prompt": "a"}, "", line))


def test_files_that_cannot_be_read(folder):
    def refused(file, said):
        with pytest.raises(RunError, match=said):
            custom_task(reward="my_rewards:length", prompts=file)

    refused(folder / "none.txt", "none.txt cannot be read: .*No such file")
    refused(folder, "cannot be read")
    refused(write(folder, "", "  ", name="empty.txt"), "empty.txt holds no prompts; one a line is required")
    refused(write(folder, "One.", name="one.txt"), "one.txt has one prompt, and one is needed to test on")
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    refused(folder / "latin.txt", "latin.txt cannot be read: .*UTF-8")


def test_the_current_directory_hides_no_other_module(folder):
    (folder / "email.py").write_text("raise RuntimeError")
    (folder / "colorsys.py").write_text("raise RuntimeError")
    custom_task(reward="my_rewards:length", prompts=write(folder, *rows(3)))
    sys.modules.pop("colorsys", None)
    import colorsys

    assert colorsys.rgb_to_hsv
