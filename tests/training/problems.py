"""A small run, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import eggroll
from eggroll.training import Compiled, Result, Saving, fit, named, read_metrics, schedule

N = 8
TIMES = {"seconds", "members_per_second"}
ES_OPTIONS: dict[str, Any] = {"population": N, "sigma": 0.1}


def strategy(**options: Any) -> eggroll.ES:
    rate = schedule("cosine_decay_schedule", init_value=0.05, decay_steps=40)
    return eggroll.ES(**{**ES_OPTIONS, "optimizer": named("adam", learning_rate=rate), **options})


@cache
def usual() -> eggroll.ES:
    """One strategy for many runs, compiled once."""
    return strategy()


def begin(es: eggroll.ES) -> eggroll.State:
    params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
    return es.init(params, jax.random.key(7))


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    while True:
        x = rng.standard_normal((5, 4), np.float32)
        yield x, x[:, :3] * 2


def predict(params: Any, x: Any, y: Any) -> Any:
    return x @ params["w"] + params["b"]


def fitness(params: Any, x: Any, y: Any) -> Any:
    return -jnp.mean((predict(params, x, y) - y) ** 2)


def counting(params: Any, seen: Any, x: Any, y: Any) -> Any:
    """A model with state of its own: a running mean."""
    return fitness(params, x, y), {"mean": 0.9 * seen["mean"] + 0.1 * x.mean()}


CARRY = {"mean": np.zeros((), np.float32)}  # not of JAX, which several processes start first
COUNTING = Compiled(counting, carries=True)


def run(folder: Path | None, generations: int = 12, *, es: Any = None, data: Any = None, **options: Any) -> Result:
    es = usual() if es is None else es
    data = batches() if data is None else data
    options = {"saving": Saving(every=4), "carry": CARRY, **options}
    return fit(es, begin(es), COUNTING, data, generations=generations, folder=folder, **options)


def left_by(folder: Path) -> dict[str, Any]:
    """What a run wrote, without times."""
    return {
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder)],
        "ledger": (folder / "ledger.bin").read_bytes(),
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
    }


def assert_same(result: Result, expected: Result) -> None:
    """Bit for bit: parameters, optimizer, key, generation, and the model's own state."""
    got, want = (jax.tree.flatten((r.state, r.carry)) for r in (result, expected))
    assert got[1] == want[1]
    for a, b in zip(got[0], want[0], strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
