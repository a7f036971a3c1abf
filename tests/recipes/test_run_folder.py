"""The run folder by itself: metrics that are always JSON, and the way back to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eggroll.recipes.models import build
from eggroll.recipes.run_folder import RunFolder, arrays_of, load, read_metrics
from eggroll.recipes.settings import Model, SettingsError


def write(path: Path, model: nnx.Module, *, name: str, seed: int = 0) -> None:
    folder = RunFolder(path)
    folder.start(options={"model": name, "seed": seed})
    folder.write_parameters(model)


@pytest.mark.parametrize("name", get_args(Model))
def test_a_model_comes_back(name: str, tmp_path: Path) -> None:
    model, x = build(name, seed=5), jnp.ones((2, 8, 8))
    write(tmp_path, model, name=name)  # the configuration's seed is another: every number must come from the file
    model.eval()
    np.testing.assert_array_equal(load(tmp_path)(x), model(x))  # type: ignore[operator]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start()
    folder.log({"generation": 1, "fitness_mean": float("nan"), "fitness_best": float("inf"), "fitness_std": 0.5})
    assert read_metrics(tmp_path) == [
        {"generation": 1, "fitness_mean": None, "fitness_best": None, "fitness_std": 0.5}
    ]  # on disk although the run goes on
    folder.write_parameters(build("mlp", 0))


def test_starting_removes_an_unfinished_run(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "curve.png", "config.json", "notes.txt"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    folder = RunFolder(tmp_path)
    folder.start(options={"model": "mlp", "seed": 0})
    folder.write_parameters(build("mlp", 0))
    assert {file.name for file in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "config.json",
        "parameters.npz",
        "notes.txt",
    }
    assert read_metrics(tmp_path) == []
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "old"


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path, build("mlp", 0), name="mlp")
    with pytest.raises(SettingsError, match="holds a finished run"):
        RunFolder(tmp_path)
    RunFolder(tmp_path, overwrite=True)
    load(tmp_path)  # nothing is removed before the run starts


@pytest.mark.parametrize("missing", ["config.json", "parameters.npz"])
def test_a_folder_without_a_finished_run(missing: str, tmp_path: Path) -> None:
    write(tmp_path, build("mlp", 0), name="mlp")
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {missing}"):
        load(tmp_path)


def test_parameters_of_another_model(tmp_path: Path) -> None:
    write(tmp_path, build("cnn", 0), name="mlp")
    with pytest.raises(ValueError, match=r"do not fit MLP; they differ in .*conv1/kernel"):
        load(tmp_path)


def test_parameters_of_another_shape(tmp_path: Path) -> None:
    write(tmp_path, build("mlp", 0), name="mlp")
    changed = arrays_of(build("mlp", 0)) | {"head/bias": np.zeros(11, np.float32)}
    np.savez(tmp_path / "parameters.npz", **changed)
    with pytest.raises(ValueError, match=r"differ in head/bias\.$"):
        load(tmp_path)


def test_the_configuration_is_written_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.start(options={"seed": 3})
    config = json.loads((tmp_path / "deep" / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["options"] == {"seed": 3} and "jax" in config["versions"]
    folder.write_parameters(build("mlp", 0))
