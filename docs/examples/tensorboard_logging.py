"""Metrics of a run for TensorBoard, and as lines of JSON that pandas reads as they are."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import eggroll
from eggroll.training import Saving, fit, read_metrics


def fitness_fn(params, x):
    return -jnp.mean((x @ params["w"] - 1.0) ** 2)


es = eggroll.ES(population=64, sigma=0.1, optimizer=optax.adam(0.05))
with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch) / "run"
    state = es.init({"w": jnp.zeros((8, 4))}, jax.random.key(0))
    saving = Saving(every=20, tensorboard=True)
    fit(es, state, fitness_fn, [jnp.eye(8)], epochs=None, generations=20, folder=folder, saving=saving)
    # tensorboard --logdir FOLDER shows them; pandas.read_json(folder / "metrics.jsonl", lines=True) is a table.
    events = sum(file.stat().st_size for file in (folder / "tensorboard").iterdir())
    print(f"{len(read_metrics(folder))} lines of metrics, TensorBoard's files written: {events > 1000}")
