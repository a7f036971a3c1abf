"""The way back from a run's folder to its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eggroll.recipes.models import build
from eggroll.recipes.run_folder import arrays_of, load
from eggroll.recipes.settings import Model
from eggroll.training.folder.arrays import save_arrays
from tests.quick import quickest


def write(path: Path, model: nnx.Module, *, name: str, seed: int = 0) -> None:
    (path / "config.json").write_text(json.dumps({"options": {"model": name, "seed": seed}}), encoding="utf-8")
    save_arrays(path / "parameters.npz", arrays_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", quickest(get_args(Model), "mlp", "cnn"))
def test_a_model_comes_back(name: str, tmp_path: Path) -> None:
    model, x = build(name, seed=5), jnp.ones((2, 8, 8))
    write(tmp_path, model, name=name)  # the configuration's seed is another: every number must come from the file
    model.eval()
    np.testing.assert_array_equal(load(tmp_path)(x), model(x))  # type: ignore[operator]


@pytest.mark.parametrize("missing", ["config.json", "parameters.npz"])
def test_a_folder_without_a_finished_run(missing: str, tmp_path: Path) -> None:
    write(tmp_path, build("mlp", 0), name="mlp")
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {missing}"):
        load(tmp_path)


def test_parameters_of_another_model(tmp_path: Path) -> None:
    write(tmp_path, build("cnn", 0), name="mlp")
    with pytest.raises(ValueError, match=r"lacks, or has besides, conv1/kernel.* of MLP are required"):
        load(tmp_path)


def test_parameters_of_another_shape(tmp_path: Path) -> None:
    write(tmp_path, build("mlp", 0), name="mlp")
    changed = arrays_of(build("mlp", 0)) | {"head/bias": np.zeros(11, np.float32)}
    np.savez(tmp_path / "parameters.npz", **changed)
    with pytest.raises(ValueError, match=r"'head/bias' has the shape \[11\], not \[10\]"):
        load(tmp_path)


@pytest.mark.parametrize("where", [(), ("options",)])
def test_what_the_configuration_has_and_nobody_knows_is_no_model(where: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, build("mlp", 0), name="mlp")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (config[where[0]] if where else config)["activation"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json' with 'activation', which this version"):
        load(tmp_path)
