"""Settings of fine-tuning: the method's defaults, replaced by what is given, and refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eggroll.llm.finetuning.run_facts import facts_of
from eggroll.llm.finetuning.settings import EvaluateSettings, FinetuneSettings, settings_for
from eggroll.llm.tasks.options import options_from
from eggroll.strategy.methods import METHODS
from eggroll.training.options import SettingsError, from_json, options_of

ASKED: dict[str, Any] = {"model": "a folder", "task": "countdown"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a method that is not known": ({"method": "grpo"}, r"got method='grpo'; one of 'eggroll', 'full-rank'"),
    "no task": ({"task": None}, "neither --task nor --reward"),
    "a column of a ready task": ({"prompt_column": "text"}, "got a column of prompts for a ready task"),
    "options of no template": ({"template": "none", "template_options": ("a=1",)}, "template='none' with options"),
    "two tasks": ({"reward": "a:b", "prompts_file": Path("p")}, "both --task and --reward"),
    "a reward without prompts": ({"task": None, "reward": "a:b"}, "a reward without prompts_file.*--prompts-file FILE"),
    "prompts without a reward": ({"prompts_file": Path("p")}, "prompts_file without a reward"),
    "test prompts of a ready task": ({"test_prompts_file": Path("p")}, "has its own"),
    "an odd population": ({"population": 7}, "population=7; an even number.*Use 8"),
    "pairs that groups part": (
        {"population": 8, "prompts": 8},
        r"population=8 in 8 groups; an even number of members in every group.*--population 16",
    ),
    "groups that members do not fill": ({"population": 32, "groups": 3, "prompts": 3}, "--population 36, or other"),
    "full-rank groups of one": (
        {"method": "full-rank", "population": 4, "groups": 4, "prompts": 4},
        "--population 8",
    ),
    "prompts that groups cannot share": ({"prompts": 9, "groups": 8}, "prompts=9 for groups=8.*--prompts 16"),
    "a pool that is too small": ({"pool": 2}, "pool=2 for prompts=4"),
    "no prompts": ({"prompts": 0}, "prompts=0; an integer of at least 1"),
    "no tokens": ({"max_tokens": 0}, "max_tokens=0"),
    "no noise": ({"sigma": 0.0}, "sigma=0.0; a finite number > 0"),
    "a negative budget": ({"token_budget": -1}, "token_budget=-1"),
    "cold": ({"temperature": -1.0}, "temperature=-1.0; 0"),
    "no memory": ({"memory": 0.0}, "memory=0.0"),
    "no time": ({"scorer_seconds": 0.0}, "scorer_seconds=0.0"),
    "a time that no timer takes": ({"scorer_seconds": 1e300}, r"scorer_seconds=1e\+300; at most 86400"),
    "no worker": ({"workers": 0}, "workers=0"),
    "a dtype": ({"dtype": "int8"}, "dtype='int8'; one of 'float32', 'bfloat16'"),
    "an optimizer": ({"optimizer": "muon"}, "optimizer='muon'; one of 'sgd', 'adam'"),
    "an option": ({"task_options": ("largest",)}, "'largest'; name=value"),
    "ranks of dense noise": ({"method": "full-rank", "rank": 8}, "rank=8 for method='full-rank'.*leave it out"),
    "an optimizer of full rank": ({"method": "full-rank", "optimizer": "adam"}, "optimizer='adam' for method='full-"),
    "full-rank members at once": ({"method": "full-rank", "chunk": 4}, "chunk=4 for method='full-rank'"),
    "noise on activations of full rank": (
        {"method": "full-rank", "noise": "activations"},
        "noise='activations' for method='full-rank'.*--method eggroll",
    ),
    "a push to nowhere": ({"push_to_hub": True}, "push_to_hub=True and hub_model_id=None; --push-to-hub --hub-model"),
    "a private push that is none": ({"hub_private_repo": True}, "push_to_hub=False and hub_model_id=None"),
    "a scale of no adapters": ({"lora_alpha": 4.0}, r"lora_alpha=4\.0 without lora; give its rank"),
    "adapters under noise on activations": (
        {"lora": 4, "noise": "activations"},
        "lora=4 with noise='activations'",
    ),
    "a divergence under noise on activations": ({"kl": 0.1, "noise": "activations"}, "kl=0.1 with noise='activations'"),
    "ranks of noise on activations": ({"noise": "activations", "rank": 2}, "rank=2 with noise='activations'.*leave"),
    "several answers of a member": (
        {"noise": "activations", "groups": 2},
        "groups=2 for prompts=4 with noise='activations'.*one answer.*Leave --groups out",
    ),
    "sgd on activations": ({"noise": "activations", "optimizer": "sgd"}, "optimizer='sgd'.*Give --learning-rate"),
    "noise of another kind": ({"noise": "rows"}, "noise='rows'; one of 'weights', 'activations'"),
    "the likeliest of some tokens": ({"top_k": 4}, "top_k=4 at temperature=0.*--temperature above 0"),
    "the likeliest of a probability": ({"top_p": 0.9, "temperature": 0.0}, "top_p=0.9 at temperature=0"),
    "a seed": ({"seed": 2**31}, "seed=2147483648; an integer .* at most 2147483647"),
    "an evaluation never": ({"eval_every": 0}, "eval_every=0"),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_are_those_of_the_method(method: str) -> None:
    settings = settings_for(method, **ASKED, rank=None)
    assert settings.population == METHODS[method].population
    assert settings.name == f"countdown-{method}" and settings.folder == Path("runs") / settings.name


@pytest.mark.parametrize("case", WRONG)
def test_what_no_run_can_use(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(SettingsError, match=message):
        settings_for(**{**ASKED, **given})


def test_groups_follow_the_method_unless_given() -> None:
    assert settings_for("eggroll", **ASKED).parts == 4
    assert settings_for("full-rank", **ASKED).parts == 1
    assert settings_for("full-rank", **ASKED, population=32, groups=4).parts == 4


def test_the_learning_rate_follows_sigma() -> None:
    assert settings_for("full-rank", **ASKED, sigma=0.01).rate == settings_for(**ASKED).rate == "auto"
    # What runs were begun with that could not choose so.
    assert replace(settings_for("full-rank", **ASKED), sigma=0.01, learning_rate=None).rate == 0.005  # α = σ/2
    assert settings_for("eggroll", **ASKED, learning_rate=0.1).rate == 0.1
    # Weights of variance 1 without information: the mean of N products has the size 1/√N of one.
    wanted = replace(settings_for("eggroll", **ASKED, sigma=0.01, population=64), learning_rate=None)
    assert wanted.rate / (wanted.sigma * 64**0.5) == pytest.approx(wanted.sigma / 6)


def test_settings_are_json() -> None:
    settings = settings_for(task=None, model="m", reward="rewards:politeness", prompts_file=Path("a") / "p.txt")
    found = json.loads(json.dumps(settings.to_json()))
    assert (found["prompts_file"], found["test_prompts_file"], found["task"]) == ("a/p.txt", None, None)
    several = replace(settings, test_prompts_file=["a/one.txt", Path("two.txt")])
    assert several.to_json()["test_prompts_file"] == ["a/one.txt", "two.txt"]
    assert replace(settings, **from_json(FinetuneSettings, several.to_json() | {"out": None})) == several
    assert replace(settings, test_prompts_file=("a/one.txt",)).test_prompts_file == Path("a/one.txt")
    assert settings.name == "politeness-eggroll" and "noise" not in found, "earlier runs have no such setting"
    activations = settings_for(**ASKED, noise="activations")
    assert activations.to_json()["noise"] == "activations" and activations.name == "countdown-eggroll-activations"
    assert (activations.rate, activations.optimizer, activations.parts) == (3e-4, "adam", activations.prompts)


def test_each_file_that_decides_a_run_is_known_by_its_content(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("p.txt", "one.txt", "two.txt")]
    for file in files:
        file.write_text(file.name, encoding="utf-8")
    settings = settings_for(
        model="m", reward="operator:contains", prompts_file=files[0], test_prompts_file=tuple(files[1:])
    )
    before = facts_of(settings, dated=False)["files"]
    assert before.keys() == {"prompts_file", "test_prompts_file", "test_prompts_file_2", "reward"}
    files[2].write_text("another", encoding="utf-8")
    after = facts_of(settings, dated=False)["files"]
    assert {name for name in before if before[name] != after[name]} == {"test_prompts_file_2"}


@pytest.mark.parametrize("value", [[1], {}, b"x", object()])
def test_no_setting_takes_what_is_of_another_kind(value: object) -> None:
    for name in options_of(FinetuneSettings):
        with pytest.raises(SettingsError, match=f"got {name}="):
            settings_for(**ASKED | {name: value})


def test_options_of_a_task() -> None:
    assert options_from(["sizes=[3, 4]", "operations=+-", "largest=20"]) == {
        "sizes": (3, 4),
        "operations": "+-",
        "largest": 20,
    }


def test_an_evaluation_is_checked_too() -> None:
    EvaluateSettings(**ASKED).check()
    for given, message in (({"split": "all"}, "split='all'"), ({"prompts": 0}, "prompts=0")):
        with pytest.raises(SettingsError, match=message):
            EvaluateSettings(**{**ASKED, **given}).check()


def test_names_are_fit_for_folders() -> None:
    assert FinetuneSettings(model="m", task="reasoning_gym:chain_sum").name == "reasoning_gym-chain_sum-eggroll"
