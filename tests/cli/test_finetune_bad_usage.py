"""What cannot be fine-tuned: status 2, one readable message, no traceback, and no run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eggroll.llm import FinetuneSettings, finetune, settings_for
from eggroll.training import RunError
from eggroll.training.folder.layout import check_kept
from tests.cli.running import call
from tests.llm import tiny
from tests.llm.climbing import SIZES
from tests.quick import quickest

CASES = {
    "an unknown task": (("--task", "concisenes"), ("no task 'concisenes'", "Did you mean 'conciseness'?")),
    "an unknown option": (("--task", "arithmetic", "--task-options", "big=3"), ("no option 'big'", "largest")),
    "no model there": (("--task", "arithmetic", "--model", "nowhere"), ("'nowhere'", "no such folder")),
    "no task": ((), ("neither --task nor --reward",)),
    "a prompt that is too long": (("--task", "arithmetic", "--max-tokens", "120"), ("tokens", "context of 128")),
    "an option of templates that is not theirs": (
        ("--task", "arithmetic", "--template-options", "tokenize=true"),
        ("template option 'tokenize'", "leave it out"),
    ),
    "groups that do not fit": (("--task", "arithmetic", "--population", "12"), ("4 groups", "--population 16")),
    "more prompts than there are": (
        ("--task", "arithmetic", "--task-options", "largest=3", "--prompts", "80", "--groups", "1"),
        ("prompts=80", "to train on"),
    ),
    "a reward that is not there": (
        ("--reward", "no_such_module:f", "--prompts-file", "prompts.txt"),
        ("no module 'no_such_module'",),
    ),
    "a file that is not there": (
        ("--reward", "math:sin", "--prompts-file", "none.txt"),
        ("none.txt", "cannot be read"),
    ),
    "a variable that is not set": (
        ("--task", "arithmetic", "--reward-env", "NOT_SET_ANYWHERE"),
        ("variable 'NOT_SET_ANYWHERE' for the reward", "not set"),
    ),
    "no memory for a pair": (("--task", "arithmetic", "--memory", "1e-6"), ("2 members", "need", "1 kB may be used")),
    "no memory for so many": (
        ("--task", "arithmetic", "--population", "256", "--chunk", "256", "--memory", "1e-3"),
        ("256 members", "1 MB may be used", "would fit"),
    ),
    "a budget that no generation keeps to": (
        ("--task", "arithmetic", "--token-budget", "127"),
        ("token_budget=127", "may generate 128 tokens (32 answers of at most 4)", "--population"),
    ),
    "a rank beyond a layer": (("--task", "arithmetic", "--rank", "999"), ("rank", "999")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    tiny.folder(folder / "base", **SIZES, num_key_value_heads=1)
    (folder / "wordy.py").write_text("def judge(text, problem):\n    return 'good'\n", encoding="utf-8")
    (folder / "prompts.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    return folder


def refused(place: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error output of a run that is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        model = () if "--model" in arguments else ("--model", "base")
        tokens = () if "--max-tokens" in arguments else ("--max-tokens", "4")
        assert call("finetune", *model, *arguments, *tokens, "--out", "run", "--workers", "1") == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    assert output.err.startswith("eggroll: ") and output.err.count("\n") == 1, output.err
    assert not (place / "run").exists(), "nothing is left of a run that did not begin"
    return output.err


@pytest.mark.parametrize(
    "case", quickest(CASES, *(case for case in CASES if case not in ("no memory for so many", "a rank beyond a layer")))
)
def test_it_is_said_early(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, parts = CASES[case]
    text = refused(place, capsys, *options)
    assert all(part in text for part in parts), text


def test_a_missing_tokenizer(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.folder(tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in refused(place, capsys, "--task", "arithmetic", "--model", str(tmp_path / "bare"))


def test_an_unknown_architecture(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.folder(tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "mamba"}), encoding="utf-8")
    assert "'mamba'" in refused(place, capsys, "--task", "arithmetic", "--model", str(tmp_path / "other"))


def test_a_run_without_a_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one leaves it that was ended at once, or a run of `eggroll train`."""
    (tmp_path / "config.json").write_text('{"options": {"method": "eggroll", "model": "base"}}', encoding="utf-8")
    assert "has no language model" in refused(place, capsys, "--task", "arithmetic", "--model", str(tmp_path))


def test_other_settings_are_refused_before_the_model_is_loaded(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loading(*_: object) -> None:
        raise RunError("the model was opened")

    monkeypatch.setattr("eggroll.llm.finetuning.job.open_model", loading)
    options = {"model": str(place / "base"), "task": "arithmetic", "out": tmp_path, "population": 16}
    before = settings_for("eggroll", **options).to_json()
    (tmp_path / "config.json").write_text(json.dumps({"options": before}), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    command = ("finetune", *(x for name in options for x in (f"--{name}", options[name])), "--resume")
    for more, said in (
        (("--sigma", "0.5"), 'sigma: "auto" → 0.5'),
        (("--sigma", "0.5", "--force"), "the model was opened"),
        (("--generations", "999", "--token-budget", "5"), "the model was opened"),  # where it ends may change
    ):
        assert call(*command, *more) == 2
        assert said in capsys.readouterr().err


def test_a_run_goes_on_with_what_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[FinetuneSettings] = []

    def take(settings: FinetuneSettings, **_: object) -> None:
        taken.append(settings)
        raise RunError("taken")

    monkeypatch.setattr("eggroll.llm.finetuning.job.finetune", take)
    options = {"model": "m", "reward": "math:sin", "prompts_file": Path("p.txt"), "max_tokens": 7, "patience": 2}
    options |= {"answer_prefix": "So "}
    begun = settings_for("full-rank", **options, template_options=("a=1",), sigma=0.5, time_limit=60.0, out=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"options": begun.to_json()}), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    command = ("finetune", "--resume", "--out", tmp_path)
    for more, changed in (
        ((), {}),
        (("--sigma", "0.5", "--generations", "999"), {"generations": 999}),
        (("--token-budget", "5000", "--time-limit", "None"), {"token_budget": 5000, "time_limit": None}),
        (("--force", "--sigma", "0.1"), {"force": True, "sigma": 0.1}),
    ):
        assert call(*command, *more) == 2
        assert taken.pop() == replace(begun, resume=True, **changed)
        assert settings_for(resume=True, out=tmp_path, **changed) == replace(begun, resume=True, **changed)
    capsys.readouterr()
    for more, said in (
        (("--sigma", "0.1"), "sigma: 0.5 → 0.1"),
        (("--model", "n"), 'model: "m" → "n"'),
        (("--method", "eggroll"), 'method: "full-rank" → "eggroll"'),
        (("--task", "countdown"), 'task: null → "countdown"'),
    ):
        assert call(*command, *more) == 2
        assert not taken and said in capsys.readouterr().err
    assert call("train", "--resume", "--out", tmp_path) == 2
    assert "of another command" in capsys.readouterr().err


def test_a_missing_extra(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # importing it raises
    assert "[reasoning]" in refused(place, capsys, "--task", "reasoning_gym:chain_sum")


@pytest.mark.parametrize("model", ["run", "run/model", "run/checkpoints/../model/model.safetensors", "link"])
def test_a_model_that_would_be_cleared(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "run/model/model.safetensors"
    weights.parent.mkdir(parents=True)
    (tmp_path / "run/checkpoints").mkdir()
    weights.write_bytes(b"weights")
    (tmp_path / "link").symlink_to("run/model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert call("finetune", "--model", model, "--task", "arithmetic", "--out", "run", "--overwrite") == 2
        with pytest.raises(RunError, match=f"the model '{model}' in the run folder 'run'"):
            finetune(settings_for(model=model, task="arithmetic", out=Path("run"), overwrite=True))
    assert f"the model '{model}' in the run folder 'run', which would be cleared" in capsys.readouterr().err
    assert weights.read_bytes() == b"weights"


@pytest.mark.parametrize("option", [(), ("--overwrite",), ("--resume",)])
def test_a_model_folder_is_no_run_folder(option: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture) -> None:
    """The run's config.json would take the place of the model's."""
    base = str(place / "base")
    assert call("finetune", "--model", base, "--task", "arithmetic", "--out", base, *option) == 2
    assert "which is no run's" in capsys.readouterr().err


def test_what_is_no_part_of_a_run_may_lie_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    check_kept(tmp_path, tmp_path / "base")
    check_kept(tmp_path, "owner/name")
    check_kept(tmp_path / "base", tmp_path)


def test_a_variable_that_no_option_names(place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    lines = "import os\ndef count(text, problem):\n    return sum(name.startswith('MY_KEY_') for name in os.environ)\n"
    (place / "keyed.py").write_text(lines, encoding="utf-8")
    for name in ("MY_KEY_1", "MY_KEY_2", "MY_KEY_3"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    ask = ("--model", "base", "--reward", "keyed:count", "--prompts-file", "prompts.txt", "--max-tokens", "4")
    assert call("evaluate", *ask, "--reward-env", "MY_KEY_1", "--reward-env", "MY_KEY_3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reward"] == 2.0


def test_a_scorer_that_returns_a_string(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(place, capsys, "--reward", "wordy:judge", "--prompts-file", "prompts.txt", "--prompts", "2")
    assert "returned the string 'good'" in text and "number" in text


@pytest.mark.parametrize("out", ["nowhere/e.json", "base"])
def test_a_result_that_cannot_be_written(out: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said before the model is looked for, let alone asked."""
    assert call("evaluate", "--model", "no/model/there", "--task", "arithmetic", "--out", place / out) == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["grpo", ""])
def test_an_unknown_method(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("finetune", "--model", "m", "--task", "arithmetic", "--method", method) == 2
    assert "full-rank" in capsys.readouterr().err
