"""`eggroll finetune`, `evaluate` and `replay` on a tiny language model: what they write, and that they agree."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from eggroll.llm.finetuning.model_folders import asked_as_in_its_run
from eggroll.llm.finetuning.settings import EvaluateSettings, settings_for
from eggroll.llm.finetuning.step import Answered
from eggroll.training import RunError, read_metrics
from tests.cli.running import PNG, call, spawn
from tests.llm import tiny
from tests.llm.climbing import SIZES

REWARD = """
def letters(text, problem):
    assert problem.data["topic"] in problem.prompt
    return sum("a" <= c.lower() <= "z" for c in text) / max(len(text), 1)
"""
OPTIONS = ("--population", "8", "--prompts", "2", "--sigma", "0.1", "--learning-rate", "0.05", "--generations", "4")
OPTIONS += ("--deliver", "last")
ASKED = ("--reward", "my_rewards:letters", "--prompts-file", "prompts.jsonl", "--max-tokens", "4", "--workers", "1")
FILES = "checkpoints config.json curve.png evaluation.json ledger.bin metrics.jsonl model run.lock samples.jsonl"
WEIGHTS = "model/model.safetensors"
TIMES = {"seconds", "members_per_second", "tokens_per_second"}


def write_inputs(folder: Path) -> None:
    """A model, prompts, and a reward."""
    tiny.folder(folder / "base", **SIZES, num_key_value_heads=1)
    (folder / "my_rewards.py").write_text(REWARD, encoding="utf-8")
    sys.modules.pop("my_rewards", None)  # another test's
    lines = [json.dumps({"prompt": f"Write about {i}.", "topic": str(i)}) for i in range(15)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, prompts, a reward and a finished run; the current one."""
    folder = tmp_path_factory.mktemp("finetune")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        assert call("finetune", "--model", "base", *ASKED, *OPTIONS, "--eval-every", "2", "--out", "run") == 0
        yield folder


def evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{name: x for name, x in record.items() if name not in TIMES} for record in read_metrics(folder)]


def test_what_a_run_leaves(there: Path) -> None:
    run = there / "run"
    assert sorted(file.name for file in run.iterdir()) == ["MANIFEST.json", *FILES.split()]
    records = read_metrics(run)
    assert [r["generation"] for r in records] == [1, 2, 3, 4]
    assert ["test_reward" in r for r in records] == [True, True, False, True]
    assert all(0 <= r["fitness_worst"] <= r["reward_mean"] <= r["reward_best"] <= 1 for r in records)
    assert all(1 <= r["answer_tokens"] <= 4 and r["scorer_errors"] == 0 for r in records)
    written = [r["tokens"] for r in records]
    assert np.diff([0, *written]).tolist() == [round(8 * r["answer_tokens"]) for r in records]
    assert all(r["answer_tokens_least"] <= r["answer_tokens"] <= r["answer_tokens_most"] <= 4 for r in records)
    assert all(0 <= r[name] <= 1 for r in records for name in ("truncated", "empty", "distinct"))
    assert records[-1]["test_kl"] > 0 and evaluation(run)["before"]["kl"] == 0
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["options"]["reward"] == "my_rewards:letters"
    assert (run / "curve.png").read_bytes().startswith(PNG)


def test_held_out_answers_before_and_after(there: Path) -> None:
    found = evaluation(there / "run")
    samples = [json.loads(s) for s in (there / "run/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    last = read_metrics(there / "run")[-1]
    assert (found["generation"], found["ended"], found["tokens"]) == (4, "finished", last["tokens"])
    assert found["after"]["reward"] == last["test_reward"] and found["after"]["error"] == last["test_reward_error"]
    assert found["before"]["prompts"] == found["after"]["prompts"] == 3  # a fifth of the prompts
    assert [s["generation"] for s in samples] == [g for g in (0, 1, 2, 4) for _ in range(3)]
    rewards = [s["reward"] for s in samples if s["generation"] == 4]
    assert found["after"]["reward"] == pytest.approx(np.mean(rewards), abs=1e-6)
    assert found["after"]["error"] == pytest.approx(np.std(rewards, ddof=1) / 3**0.5, abs=1e-6)


def test_evaluate_finds_the_same(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--model", "run/model", *ASKED, "--json", "--out", "e.json") == 0
    found, after = json.loads(capsys.readouterr().out), evaluation(there / "run")["after"]
    assert {name: found[name] for name in ("prompts", "reward", "error", "answer_tokens")} == {
        name: after[name] for name in ("prompts", "reward", "error", "answer_tokens")
    }
    answers = json.loads((there / "e.json").read_text(encoding="utf-8"))["answers"]
    assert found["reward"] == pytest.approx(np.mean([a["reward"] for a in answers]), abs=1e-6)


def test_evaluate_asks_as_the_run_did(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reward's own number of tokens is another."""
    ask = [x for x in ASKED if x not in ("--max-tokens", "4")]
    assert call("evaluate", "--model", "run", *ask, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["max_tokens"], found["reward"]) == (4, evaluation(there / "run")["after"]["reward"])


def test_evaluate_says_it_to_people(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--model", "base", *ASKED, "--samples", "1") == 0
    text, before = capsys.readouterr().out, evaluation(there / "run")["before"]
    assert f"reward {before['reward']:.4f} ± {before['error']:.4f} over 3 prompts" in text
    assert text.count("prompt: ") == 1 and "tokens/s" in text


@pytest.mark.parametrize("base", ["base", "run"])
def test_replay_rebuilds_the_model(base: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = there / f"rebuilt-{base}"
    assert call("replay", base, "run", "--out", out / "model") == 0
    assert "every update has the run's norms, bit for bit" in capsys.readouterr().out
    assert (out / WEIGHTS).read_bytes() == (there / "run" / WEIGHTS).read_bytes()


def test_replay_writes_arrays_too_and_refuses_another_model(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("replay", "base", "run", "--out", "zero.npz", "--generation", "0") == 0
    with np.load(there / "zero.npz") as file:
        total = sum(file[name].size for name in file.files)
    assert total == sum(array.size for array in load_file(there / "base/model.safetensors").values())
    capsys.readouterr()
    assert call("replay", "run/model", "run", "--out", "other") == 2
    assert "are not those that the ledger was written for (it names its base 'base')" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eggroll", "full-rank"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It begins in a process of its own, and goes on twice in this one."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = ("finetune", "--model", "base", *ASKED, *OPTIONS, "--method", method, "--temperature", "0.7")
    command += ("--generations", "3")
    begins = spawn(*command, "--out", "parts", "--time-limit", "1e-6", cwd=tmp_path, timeout=900)
    said = [x for x in begins.stderr.splitlines() if "of the held-out answers are empty" not in x]  # as they are
    assert (begins.returncode, len(said)) == (0, 1) and "out of time" in said[0], begins.stderr
    for generation, more in ((1, ("--time-limit", "1e-6")), (2, ())):
        samples = (tmp_path / "parts/samples.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(samples[-1])["generation"] == generation == evaluation(tmp_path / "parts")["generation"]
        assert call(*command, "--out", "parts", "--resume", *more) == 0
        assert ("out of time" in capsys.readouterr().err) == bool(more)
    assert call(*command, "--out", "whole") == 0
    for name in ("model/model.safetensors", "samples.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    plain = [
        [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(tmp_path / n)] for n in ("whole", "parts")
    ]
    assert plain[0] == plain[1]
    assert call("replay", "base", "parts", "--out", "rebuilt") == 0
    assert (tmp_path / "rebuilt/model.safetensors").read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_a_token_budget_is_kept_to(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A generation is 8 answers of at most 4 tokens: it is made while 32 are left."""
    assert call("finetune", "--model", "base", *ASKED, *OPTIONS, "--out", "budget", "--token-budget", "64") == 0
    found, said = evaluation(there / "budget"), capsys.readouterr().out
    assert f"{found['tokens']} generated tokens of 64" in said and "ended by --token-budget" in said
    assert found["ended"] == "finished" and 64 - 32 < found["tokens"] <= 64
    assert found["generation"] == len(read_metrics(there / "budget")) < 4


@pytest.mark.parametrize("out", ["run", ".", "run/checkpoints", "nobase"])
def test_replay_removes_nothing_but_a_model(out: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "nobase").mkdir(exist_ok=True)
    (there / "nobase/notes.txt").write_text("mine", encoding="utf-8")
    before = sorted(there.rglob("*"))
    assert call("replay", "base", "run", "--out", out, "--overwrite") == 2
    assert "choose another place with --out" in capsys.readouterr().err
    assert sorted(there.rglob("*")) == before


def test_evaluate_does_not_take_trained_prompts_for_held_out_ones(there: Path) -> None:
    asked = EvaluateSettings(model="run", reward="my_rewards:letters", prompts_file=Path("prompts.jsonl"))
    config = there / "run/config.json"
    before = config.read_text(encoding="utf-8")
    options = json.loads(before)
    options["options"] |= {"test_prompts_file": "others.txt", "system": "Be brief."}
    del options["options"]["degenerate"]
    try:
        config.write_text(json.dumps(options), encoding="utf-8")
        found = asked_as_in_its_run(asked)
        assert (found.test_prompts_file, found.system, found.max_tokens) == (Path("others.txt"), "Be brief.", 4)
        # As all answers that were cut off before there was a choice.
        assert {found.degenerate, settings_for(resume=True, out=there / "run").degenerate} == {"scored"}
        absolute = replace(asked, prompts_file=there / "prompts.jsonl")
        for same in (absolute, replace(absolute, model="run/model")):  # by other names
            assert asked_as_in_its_run(same).test_prompts_file == Path("others.txt")
        given = asked_as_in_its_run(replace(asked, system="", max_tokens=2))
        assert (given.system, given.max_tokens) == ("", 2)  # what is given counts
        other = replace(asked, prompts_file=Path("p.txt"))
        assert asked_as_in_its_run(other) == other
        config.write_text(json.dumps({"options": {**options["options"], "persona": "a pirate"}}), encoding="utf-8")
        with pytest.raises(RunError, match="options of the run in 'run' with 'persona', which this version"):
            asked_as_in_its_run(asked)
    finally:
        config.write_text(before, encoding="utf-8")


@pytest.mark.slow
def test_a_run_keeps_to_the_memory_it_began_with_and_to_its_prompts(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is answered at once changes rounding; what was asked decides everything."""
    prompts, whole = there / "prompts.jsonl", (there / "prompts.jsonl").read_text(encoding="utf-8")
    command = ("finetune", "--model", "base", *ASKED, *OPTIONS, "--out", "kept", "--eval-every", "2")
    assert call(*command, "--generations", "2") == 0
    monkeypatch.setattr("eggroll.llm.finetuning.run_facts.available", lambda: 30_000.0)
    prompts.write_text(whole + '\n{"prompt": "Write about 99.", "topic": "99"}', encoding="utf-8")
    try:
        assert call(*command, "--resume") == 2
        assert "files.prompts_file" in capsys.readouterr().err
    finally:
        prompts.write_text(whole, encoding="utf-8")
    (there / "kept/evaluation.json").write_text('{"bef', encoding="utf-8")  # damaged: found out again
    capsys.readouterr()
    assert call("finetune", "--resume", "--out", "kept", "--generations", "4") == 0  # it had ended
    assert "(resumed after 2)" in capsys.readouterr().out
    before = [evaluation(there / run)["before"]["reward"] for run in ("kept", "run")]
    assert before[0] == before[1]
    assert (there / "kept" / WEIGHTS).read_bytes() == (there / "run" / WEIGHTS).read_bytes()
    samples = (there / "kept/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert call(*command, "--resume", "--force", "--sigma", "0.2", "--generations", "5", "--memory", "1") == 0
    longer = (there / "kept/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert longer[: len(samples)] == samples and len(longer) > len(samples)


def test_what_a_reward_prints_is_no_part_of_the_output(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = "print('aloud')\ndef letters(text, problem):\n    print('hello')\n    return 1.0\n"
    (there / "talkative.py").write_text(said, encoding="utf-8")
    ask = ["talkative:letters" if x.startswith("my_rewards") else x for x in ASKED]
    assert call("evaluate", "--model", "base", *ask, "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["reward"] == 1.0 and "hello" in err and "aloud" in err


@pytest.mark.slow
def test_answers_that_cannot_be_scored_are_told_and_a_run_that_its_budget_ended_stays_ended(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = "def hard(text, problem):\n    return 1 / (len(problem.prompt) < 15)\n"
    (there / "hard_reward.py").write_text(reward, encoding="utf-8")
    ask = ["hard_reward:hard" if x.startswith("my_rewards") else x for x in ASKED]
    assert call("finetune", "--model", "base", *ask, *OPTIONS, "--token-budget", "64", "--out", "hard") == 0
    records = untimed(there / "hard")
    failed = sum(record["scorer_errors"] for record in records)
    assert failed and f"{failed} answers in training could not be scored" in capsys.readouterr().out
    assert len(records) < 4
    assert call("finetune", "--resume", "--out", "hard") == 0 and untimed(there / "hard") == records


@pytest.mark.slow
def test_an_error_under_way_leaves_the_model_that_there_was(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Answered.__call__

    def failing(self: Answered, es: Any, state: Any, carry: Any, batch: Any) -> Any:
        if int(state.generation) == 1:
            raise RunError("the scorers are gone.")
        return whole(self, es, state, carry, batch)

    monkeypatch.setattr(Answered, "__call__", failing)
    assert call("finetune", "--model", "base", *ASKED, *OPTIONS, "--out", "broken") == 2
    assert "the scorers are gone." in capsys.readouterr().err
    assert call("replay", "base", "broken", "--out", "one/model", "--generation", "1") == 0
    assert (there / "broken" / WEIGHTS).read_bytes() == (there / "one" / WEIGHTS).read_bytes()
