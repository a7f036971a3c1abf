"""The model of a run: written when the run ends, and rebuilt from its folder."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eggroll.engine.paths import leaf_paths
from eggroll.recipes.models import build
from eggroll.recipes.settings import Settings
from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import by_path, read_arrays
from eggroll.training.folder.layout import CONFIG, PARAMETERS
from eggroll.training.options import options_of_run


def arrays_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's variables by path, as `eggroll explain` names them; without RNG streams, which a seed makes again."""
    return by_path(nnx.state(model, nnx.Not(nnx.RngState)))


def load(folder: Path | str) -> nnx.Module:
    """Rebuilds the trained model of a run.

    Args:
        folder: what `eggroll train` wrote.

    Returns:
        The model in evaluation mode; it maps images `[batch, 8, 8]`, scaled as in `eggroll.recipes.data.digits`, to
        logits `[batch, 10]`.

    Raises:
        FileNotFoundError: no finished run in that folder.
        RunError: a file that is damaged, or not as it was written; parameters that do not fit the model that the
            configuration names.
    """
    folder = Path(folder)
    options = options_of_run(folder, Settings, "eggroll train", (PARAMETERS,))
    try:
        model = build(options["model"], options["seed"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as why:
        raise RunError(
            f"'{folder / CONFIG}' names no model of `eggroll train` ({type(why).__name__}: {why}); one of that "
            "command is required. Restore it from a copy."
        ) from why
    shapes = {path: array.shape for path, array in arrays_of(model).items()}
    mend = f"The parameters of {type(model).__name__} are required: restore it from a copy."
    put_arrays(model, read_arrays(folder / PARAMETERS, shapes, mend))
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
