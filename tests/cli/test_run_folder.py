"""What a run leaves behind."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np

from eggroll.recipes.data import digits
from eggroll.recipes.run_folder import load
from tests.cli.running import PNG, arrays

KEYS = {
    "generation",
    "fitness_mean",
    "fitness_best",
    "fitness_worst",
    "fitness_std",
    "gradient_norm",
    "update_norm",
    "nonfinite",
    "sigma",
    "members_per_second",
    "seconds",
}
OPTIONS = {
    "model": "mlp",
    "population": 4,
    "generations": 3,
    "batch_size": 16,
    "seed": 0,
    "overwrite": False,
    "resume": False,
    "force": False,
    "checkpoint_every": 50,
    "keep": 2,
    "keep_best": 1,
    "patience": 0,
    "time_limit": None,
    "tensorboard": False,
}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_it_holds(finished: Path) -> None:
    names = {file.name for file in finished.iterdir()}
    results = {"metrics.jsonl", "evaluation.json", "curve.png", "parameters.npz", "config.json"}
    assert names == results | {"initial.npz", "ledger.bin", "checkpoints", "run.lock", "MANIFEST.json"}


def test_metrics_have_one_line_per_generation(finished: Path) -> None:
    records = metrics(finished)
    assert [record["generation"] for record in records] == [1, 2, 3]
    assert all(record.keys() - {"test_accuracy"} == KEYS for record in records)
    assert ["test_accuracy" in record for record in records] == [True, False, True]  # the first and the last


def test_metrics_agree_with_each_other(finished: Path) -> None:
    records = metrics(finished)
    for record in records:
        assert record["fitness_worst"] < record["fitness_mean"] < record["fitness_best"] < 0
        assert 0 < record["fitness_std"] < record["fitness_best"] - record["fitness_worst"]
        assert record["gradient_norm"] > 0 and record["update_norm"] > 0 and record["members_per_second"] > 0
        assert record["nonfinite"] == 0
    assert 0 < records[0]["seconds"] <= records[1]["seconds"] <= records[2]["seconds"]


def test_the_curve_is_a_picture_with_something_in_it(finished: Path) -> None:
    data = (finished / "curve.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(PNG)
    assert 600 <= width <= 2400 and 400 <= height <= 2400
    assert matplotlib.image.imread(finished / "curve.png")[..., :3].std() > 0.01


def test_parameters_are_plain_arrays_by_path(finished: Path) -> None:
    found = {path: (array.shape, array.dtype.name) for path, array in arrays(finished).items()}
    assert found["hidden1/bias"][1] == found["hidden1/kernel"][1] == "float32"
    assert found["hidden1/kernel"][0][0] == 64 and found["head/bias"][0] == (10,)
    assert all(np.isfinite(array).all() for array in arrays(finished).values())


def test_the_configuration_has_all_options_and_versions(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    options = config["options"]
    others = {"rank", "sigma", "learning_rate", "distribution", "shaping", "out"}
    assert options.keys() == OPTIONS.keys() | others
    assert OPTIONS.items() <= options.items()
    assert options["out"] == finished.as_posix()
    assert config["parameters"] == sum(array.size for array in arrays(finished).values())
    assert config["versions"].keys() == {"eggroll", "jax", "jaxlib", "optax", "flax", "python", "platform"}
    assert (config["versions"]["jax"], config["versions"]["flax"]) == (jax.__version__, flax.__version__)


def test_the_accuracy_before_training_is_noted(finished: Path) -> None:
    data, initial = digits(), np.load(finished / "initial.npz")
    x = data.test_images.reshape(len(data.test_images), -1)
    for name in ("hidden1", "hidden2"):
        x = np.maximum(x @ initial[f"{name}/kernel"] + initial[f"{name}/bias"], 0)
    accuracy = np.mean(np.argmax(x @ initial["head/kernel"] + initial["head/bias"], axis=-1) == data.test_labels)
    noted = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    assert noted == {"before": {"test_accuracy": round(float(accuracy), 6)}}


def test_a_loaded_model_has_the_accuracy_that_the_run_reports(finished: Path) -> None:
    data = digits()
    logits = load(finished)(jnp.asarray(data.test_images))  # type: ignore[operator]
    accuracy = np.mean(np.argmax(np.asarray(logits), axis=-1) == data.test_labels)
    assert round(float(accuracy), 6) == metrics(finished)[-1]["test_accuracy"]
