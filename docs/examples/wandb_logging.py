"""Metrics for Weights & Biases, offline: `evaluate` sees every generation's state, `show` every record."""

import os
import tempfile

os.environ.setdefault("WANDB_MODE", "offline")  # `wandb sync` sends it later; leave this out to send at once
os.environ.setdefault("WANDB_SILENT", "true")

import jax
import jax.numpy as jnp
import optax
import wandb

import eggroll
from eggroll.training import fit


def fitness_fn(params, x):
    return -jnp.mean((x @ params["w"] - 1.0) ** 2)


es = eggroll.ES(population=64, sigma=0.1, optimizer=optax.adam(0.05))
state = es.init({"w": jnp.zeros((8, 4))}, jax.random.key(0))
with tempfile.TemporaryDirectory() as scratch, wandb.init(dir=scratch, project="eggroll", config=es.options()) as run:
    fit(es, state, fitness_fn, [jnp.eye(8)], epochs=None, generations=20, show=run.log)
    print(f"{run.step} generations logged")
