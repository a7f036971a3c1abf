"""Settings: the model's defaults, replaced by what is given, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from eggroll.recipes.settings import DEFAULTS, Model, Settings, SettingsError, settings_for

WRONG: list[tuple[str, Any]] = [
    ("model", "rnn"),
    ("population", 3),
    ("population", 8.0),
    ("population", True),
    ("rank", 0),
    ("generations", -1),
    ("batch_size", 0),
    ("seed", -1),
    ("seed", 2**31),
    ("sigma", 0.0),
    ("sigma", float("inf")),
    ("learning_rate", -0.1),
    ("learning_rate", float("nan")),
    ("distribution", "cauchy"),
    ("shaping", "best"),
    ("out", ""),
]


@pytest.mark.parametrize("model", get_args(Model))
def test_the_defaults_are_those_of_the_model(model: str) -> None:
    assert settings_for(model) == DEFAULTS[model]
    assert DEFAULTS[model].model == model


def test_none_keeps_a_default_and_a_value_replaces_it() -> None:
    settings = settings_for("cnn", population=6, sigma=None)
    assert settings.population == 6
    assert settings.sigma == DEFAULTS["cnn"].sigma


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_no_run_can_use(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"got {name}="):
        settings_for(**{name: value})


def test_the_suggested_population_is_accepted() -> None:
    with pytest.raises(SettingsError, match=r"Use 6\.$"):
        settings_for(population=5)
    assert settings_for(population=6).population == 6


def test_the_folder_is_named_after_the_model_unless_given() -> None:
    assert settings_for("cnn").folder == Path("runs") / "digits-cnn"
    assert settings_for("cnn", out=Path("here")).folder == Path("here")


def test_settings_come_back_from_json() -> None:
    settings = settings_for("transformer", seed=7, out=Path("a") / "b")
    saved = json.loads(json.dumps(settings.to_json()))
    assert Settings(**(saved | {"out": Path(saved["out"])})) == settings


@pytest.mark.parametrize("value", [3, None])
def test_a_setting_that_there_is_not(value: Any) -> None:
    with pytest.raises(SettingsError, match="settings with 'poplation', which this version"):
        settings_for("mlp", poplation=value)
