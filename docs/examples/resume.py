"""A run in a folder that is stopped and goes on, bit for bit as if it had not been stopped."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import eggroll
from eggroll.training import Saving, fit, named, read_metrics, replay


def fitness_fn(params, x):
    return -jnp.mean((x @ params["w"] - 1.0) ** 2)


def run(folder: Path, generations: int):
    """The same call for a new run and for one that goes on: one command for a job that may be killed."""
    es = eggroll.ES(population=64, sigma=0.1, optimizer=named("adam", learning_rate=0.05))  # a name, for the ledger
    state = es.init({"w": jnp.zeros((8, 4))}, jax.random.key(0))
    batches = [jnp.eye(8)]
    saving = Saving(every=10, initial=True)
    where = {"folder": folder, "resume": True, "saving": saving}
    return fit(es, state, fitness_fn, batches, epochs=None, generations=generations, **where)


with tempfile.TemporaryDirectory() as scratch:
    once = run(Path(scratch) / "once", 40)
    run(Path(scratch) / "twice", 20)
    twice = run(Path(scratch) / "twice", 40)
    equal = bool((once.state.params["w"] == twice.state.params["w"]).all())
    lines = len(read_metrics(Path(scratch) / "twice"))
    again = replay({"w": jnp.zeros((8, 4))}, Path(scratch) / "twice" / "ledger.bin", generation=40)
    replayed = bool((again.params["w"] == once.state.params["w"]).all())
    print(f"resumed after {twice.resumed} of {lines} generations, equal: {equal}, replayed: {replayed}")
