"""The folder a run is written to, and the way back from it to the trained model."""

from __future__ import annotations

import json
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eggroll.engine.paths import leaf_paths
from eggroll.recipes.models import build
from eggroll.recipes.run_files import CONFIG, CURVE, METRICS, PARAMETERS, claim, not_writable


class RunFolder:
    """Writes a run: `config.json` at once, `metrics.jsonl` line by line, `parameters.npz` at the end.

    Args:
        path: the folder; made with its parents.
        overwrite: whether a finished run in it may be replaced.

    Raises:
        SettingsError: the folder holds a finished run, or cannot be made.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        claim(path, overwrite=overwrite)

    def start(self, **config: Any) -> None:
        """Removes what an earlier run left, and writes `config` with the versions that the run depends on.

        Raises:
            SettingsError: the folder cannot be written.
        """
        text = json.dumps({**config, "versions": versions()}, indent=2)
        try:
            for name in (CONFIG, METRICS, PARAMETERS, CURVE):
                (self.path / name).unlink(missing_ok=True)
            (self.path / CONFIG).write_text(text + "\n", encoding="utf-8")
            self._metrics = (self.path / METRICS).open("w", encoding="utf-8")
        except OSError as why:
            raise not_writable(self.path, why) from why

    def log(self, record: dict[str, Any]) -> None:
        """Adds a line to the metrics; it is on disk when this returns. JSON has no NaN: such numbers become null."""
        plain = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in record.items()}
        self._metrics.write(json.dumps(plain, allow_nan=False) + "\n")
        self._metrics.flush()

    def write_parameters(self, model: nnx.Module) -> None:
        """Writes all variables of the model, whole or not at all; ends the metrics."""
        self._metrics.close()
        partial = self.path / (PARAMETERS + ".partial")
        with partial.open("wb") as file:
            np.savez(file, **arrays_of(model))  # type: ignore[arg-type]  # pyright takes one of them for allow_pickle
        os.replace(partial, self.path / PARAMETERS)


def arrays_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's variables by path, as `eggroll explain` names them; without RNG streams, which a seed makes again."""
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return {path: np.asarray(leaf) for path, leaf in zip(leaf_paths(state), jax.tree.leaves(state), strict=True)}


def load(folder: Path | str) -> nnx.Module:
    """Rebuilds the trained model of a run.

    Args:
        folder: what `eggroll train` wrote.

    Returns:
        The model in evaluation mode; it maps images `[batch, 8, 8]`, scaled as in `eggroll.recipes.data.digits`, to
        logits `[batch, 10]`.

    Raises:
        FileNotFoundError: no finished run in that folder.
        ValueError: parameters that do not fit the model that the configuration names.
    """
    folder = Path(folder)
    for name in (CONFIG, PARAMETERS):
        if not (folder / name).exists():
            raise FileNotFoundError(f"'{folder}' has no {name}: it holds no finished run of `eggroll train`.")
    options = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["options"]
    model = build(options["model"], options["seed"])
    with np.load(folder / PARAMETERS, allow_pickle=False) as file:
        put_arrays(model, dict(file))
    model.eval()
    return model


def put_arrays(model: nnx.Module, arrays: dict[str, np.ndarray]) -> None:
    """Writes what `arrays_of` returned back into a model of the same kind."""
    state = nnx.state(model, nnx.Not(nnx.RngState))
    leaves, tree = jax.tree.flatten(state)
    shapes = {path: leaf.shape for path, leaf in zip(leaf_paths(state), leaves, strict=True)}
    found = {path: array.shape for path, array in arrays.items()}
    if shapes != found:
        wrong = sorted(p for p in shapes.keys() | found.keys() if shapes.get(p) != found.get(p))
        raise ValueError(f"the saved parameters do not fit {type(model).__name__}; they differ in {', '.join(wrong)}.")
    nnx.update(model, tree.unflatten([jnp.asarray(arrays[path]) for path in shapes]))


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """The run's metrics, one dictionary per generation."""
    lines = (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return {
        "eggroll": package_version(),
        "jax": jax.__version__,
        "flax": version("flax"),
        "python": platform.python_version(),
        "platform": f"{platform.platform()}, {jax.default_backend()}",
    }


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("eggroll-jax")
    except PackageNotFoundError:  # a checkout that is on the path without being installed
        return "unknown"
