"""Small runs with a ledger, for the tests of the journal and of replays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import eggroll
from eggroll.training.ledger.format import MAGIC
from eggroll.training.ledger.journal import Journal
from eggroll.training.optimizers import named

KEY = jax.random.key(7)
X = jax.device_put(np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32))
Y = jax.device_put(np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32))


def mlp(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Two dense layers."""
    rng = np.random.default_rng(2)
    shapes = {"kernel": (6, 8), "bias": (8,)}, {"kernel": (8, 3), "bias": (3,)}
    return {
        "layers": [
            {k: jax.device_put(np.asarray(rng.normal(size=s) * 0.3, dtype)) for k, s in layer.items()}
            for layer in shapes
        ]
    }


def mlp_fitness(p: Any, x: Any, y: Any) -> Any:
    """The negative mean squared error."""
    x = x.astype(p["layers"][0]["kernel"].dtype)
    for i, layer in enumerate(p["layers"]):
        x = x @ layer["kernel"] + layer["bias"]
        x = jnp.tanh(x) if i == 0 else x
    return -jnp.mean((x.astype(y.dtype) - y) ** 2)


def strategy(**options: Any) -> eggroll.ES:
    """An ES whose optimizer the ledger can name."""
    options.setdefault("optimizer", named("adam", learning_rate=0.01, b2=0.99))
    options.setdefault("population", 8)
    return eggroll.ES(**options)


def run(
    path: Path,
    generations: int = 4,
    *,
    es: eggroll.ES | None = None,
    base: Any = None,
    fitness: Any = mlp_fitness,
    args: Any = (X, Y),
    **options: Any,
) -> list[eggroll.State]:
    """Makes a run with a ledger; returns the state of every generation, the first one included."""
    es, base = es or strategy(), mlp() if base is None else base
    states = [es.init(base, KEY)]
    with Journal(path, es, base, key=KEY, **options) as journal:
        for _ in range(generations):
            state, metrics = es.step(states[-1], fitness, *args)
            journal.append(metrics)
            states.append(state)
    return states


def boundaries(data: bytes) -> list[int]:
    """Where the records of a ledger end, the magic line first: walked here by the lengths alone."""
    ends = [len(MAGIC)]
    while ends[-1] < len(data):
        at = ends[-1]
        ends.append(at + 4 + 4 + 8 + int.from_bytes(data[at + 4 : at + 8], "little") + 16)
    return ends


def assert_same_state(got: Any, want: Any) -> None:
    """The same numbers to the last bit, whatever dictionaries they lie in."""
    for name in ("params", "master", "opt_state", "generation"):
        a, b = (jax.tree.leaves(getattr(state, name)) for state in (got, want))
        assert len(a) == len(b), name
        for x, y in zip(a, b, strict=True):
            x, y = np.asarray(x), np.asarray(y)
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            assert x.tobytes() == y.tobytes(), name
    assert (jax.random.key_data(got.key) == jax.random.key_data(want.key)).all()
