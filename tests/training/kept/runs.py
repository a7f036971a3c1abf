"""The kinds of run that are kept: what each trains, and how. `make.py` ran them once, and tests go on with them.

What stands here decides what the kept files say. A change to a kind means to make its files anew, by the code that made
them; another kind is made by the code of its day.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import eggroll
from eggroll.training import Compiled, Result, Saving, Step, fit, named, schedule
from eggroll.training.optimizers import chain

HERE = Path(__file__).parent
KEPT = ("fitness", "weights", "sigma", "gradient_norm", "update_norm")  # of every generation's metrics
MIDDLE, LAST = 2, 4  # generations; the checkpoint that is kept is of the first of these
BASE: dict[str, np.ndarray] = {
    "dense/bias": np.array([0.25, -0.5, 0.0, 1.0, -0.125], np.float32),
    "dense/kernel": (np.arange(30, dtype=np.float32).reshape(6, 5) % 7 - 3) / 8,
    "head/kernel": (np.arange(20, dtype=np.float32).reshape(5, 4) % 9 - 4) / 16,
    "scale": np.array(1.5, np.float32),
}


def base(dtype: Any = jnp.float32) -> Any:
    """The parameters that all runs start from."""
    tree: dict[str, Any] = {"dense": {}, "head": {}}
    for path, array in BASE.items():
        inner, _, name = path.rpartition("/")
        (tree[inner] if inner else tree)[name] = jnp.asarray(array, dtype)
    return tree


def fitness(params: Any, x: Any, y: Any) -> Any:
    """The negative mean squared error of two layers."""
    x = x.astype(params["scale"].dtype)
    x = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"])
    x = params["scale"] * (x @ params["head"]["kernel"])
    return -jnp.mean((x.astype(y.dtype) - y) ** 2)


def carrying(params: Any, seen: Any, x: Any, y: Any) -> Any:
    """The same, with state of the model's own: a running mean."""
    return fitness(params, x, y), {"mean": 0.75 * seen["mean"] + 0.25 * x.mean()}


def steep(fitness: Any) -> Any:
    """A shaping of one's own, which the configurations of its day describe by its code."""
    centred = fitness - fitness.mean()
    return centred * jnp.abs(centred)


def batch(generation: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch by its number, of dyadic fractions: nothing in it is rounded."""
    x = ((np.arange(18, dtype=np.float32).reshape(3, 6) * (3 + generation)) % 11 - 5) / 4
    return x, x[:, :4] / 2


def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Data without a state: a run that goes on reads them from their start."""
    generation = 0
    while True:
        yield batch(generation)
        generation += 1


class Stateful:
    """Data that tell their state as bytes, as a loader of Grain does."""

    def __init__(self) -> None:
        self._next = 0

    def __iter__(self) -> Stateful:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        self._next += 1
        return batch(self._next - 1)

    def get_state(self) -> bytes:
        return struct.pack("<q", self._next)

    def set_state(self, state: bytes) -> None:
        (self._next,) = struct.unpack("<q", state)


class Watched(Step):
    """A step, and what it came to in every generation."""

    def __init__(self, inner: Step) -> None:
        self._inner, self.seen = inner, {}

    def __call__(self, es: Any, state: Any, carry: Any, batch: Any) -> Any:
        state, carry, metrics = self._inner(es, state, carry, batch)
        self.seen[int(state.generation)] = {name: np.asarray(metrics[name]) for name in KEPT}
        return state, carry, metrics


@dataclass(frozen=True)
class Kind:
    """A run that is kept.

    Attributes:
        options: makes the options of the strategy.
        method: the strategy.
        dtype: of the parameters.
        data: makes the data.
        optimized: whether XLA optimised its programs. Not doing so saves most of the time, and gives other bits.
        carries: whether the model has state of its own.
        tensorstore: whether its checkpoint is are TensorStore's, as those of large states are.
        changed: other options, which were forced at `MIDDLE`.
    """

    options: Callable[[], dict[str, Any]]
    method: Callable[..., eggroll.ES] = eggroll.ES
    dtype: Any = jnp.float32
    data: Callable[[], Any] = counted
    optimized: bool = False
    carries: bool = False
    tensorstore: bool = False
    changed: dict[str, Any] = field(default_factory=dict)

    def strategy(self, **more: Any) -> eggroll.ES:
        """A new one."""
        return self.method(**{"population": 8, "sigma": 0.125, **self.options(), **more})

    def run(self, folder: Path, generations: int = LAST, **options: Any) -> tuple[Result, dict[int, Any]]:
        """Begins the run in `folder`, or goes on with it; also returns the metrics of the generations that it made."""
        es = self.strategy(**(self.changed if options.get("force") else {}))
        model = {"mean": np.zeros((), np.float32)} if self.carries else ()
        step = Watched(Compiled(carrying if self.carries else fitness, carries=self.carries))
        options |= {"carry": model, "saving": Saving(every=MIDDLE, base="two layers"), "settings": {"data": "dyadic"}}
        state = es.init(base(self.dtype), jax.random.key(7))
        return fit(es, state, step, self.data(), generations=generations, folder=folder, **options), step.seen


def cosine() -> Any:
    """A schedule that a ledger can name."""
    return schedule("cosine_decay_schedule", init_value=0.0625, decay_steps=LAST, alpha=0.1)


def adam() -> dict[str, Any]:
    """The usual options."""
    return {"optimizer": named("adam", learning_rate=cosine(), b2=0.99)}


def normal() -> dict[str, Any]:
    """Normal noise of rank 2, ranks as weights, an optimizer in parts, sigma by a schedule with a name."""
    parts = named("clip_by_global_norm", max_norm=1.0), named("sgd", learning_rate=0.25, momentum=0.5, nesterov=True)
    falling = schedule("linear_schedule", init_value=0.25, end_value=0.0625, transition_steps=LAST)
    more = {"distribution": "normal", "rank": 2, "shaping": "centered_rank"}
    return {"sigma": falling, "optimizer": chain(*parts), **more}


def rules() -> dict[str, Any]:
    """One of each rule, and sigma by a schedule of optax."""
    listed = [
        ("dense/bias", eggroll.DenseRule(sigma_scale=0.5)),
        ("dense/kernel", eggroll.LowRankRule(rank=2, left_axes=(0,), right_axes=(1,))),
        ("scale", "frozen"),
        (".*", eggroll.LowRankRule(sigma_scale=2.0)),
    ]
    return {**adam(), "rules": listed, "shaping": "sign", "sigma": optax.exponential_decay(0.125, 2, 0.5)}


def own() -> dict[str, Any]:
    """What has no name: a function that shapes, and an optimizer, which the ledger does not hold."""
    rate = optax.linear_schedule(0.0625, 0.03125, LAST)
    return {"shaping": steep, "optimizer": optax.adamw(rate, b1=0.875, weight_decay=0.125)}


def groups() -> dict[str, Any]:
    """Members that are compared in groups, and noise that is used twice."""
    return {**adam(), "groups": 2, "shaping": "group", "noise_reuse": 2, "distribution": "normal"}


def half() -> dict[str, Any]:
    """For parameters of half precision, of which a float32 copy takes the updates."""
    return {"optimizer": named("sgd", learning_rate=0.25, momentum=0.5), "chunk": 4}


def single() -> dict[str, Any]:
    """Members without pairs, an odd number of them."""
    return {**adam(), "population": 7, "antithetic": False, "shaping": "none"}


def mesh() -> dict[str, Any]:
    """A mesh of one device, over whose other axis a parameter would be split."""
    made = jax.make_mesh((1, 1), ("population", "model"), devices=jax.devices()[:1])
    sharding = [("head/kernel", PartitionSpec(None, "model")), (".*", PartitionSpec())]
    return {**half(), "mesh": made, "sharding": sharding, "update": "weights"}


def full_rank() -> dict[str, Any]:
    """Dense noise, the learning rate by a schedule with a name."""
    return {"population": 6, "learning_rate": cosine(), "rules": [("scale", "frozen")]}


def full_rank_half() -> dict[str, Any]:
    """Dense signs in pairs and groups, rounded stochastically."""
    falling = schedule("linear_schedule", init_value=0.25, end_value=0.125, transition_steps=LAST)
    more = {"antithetic": True, "groups": 2, "shaping": "group", "noise_reuse": 2, "distribution": "rademacher"}
    return {"population": 8, "sigma": falling, "rules": [("dense/.*", eggroll.DenseRule(sigma_scale=0.5))], **more}


KINDS = {
    "optimized": Kind(adam, optimized=True, tensorstore=True),
    "normal": Kind(normal),
    "rules": Kind(rules),
    "own": Kind(own, carries=True),
    "groups": Kind(groups, data=Stateful),
    "bfloat16": Kind(half, dtype=jnp.bfloat16),
    "single": Kind(single, data=lambda: batch),
    "mesh": Kind(mesh),
    "changed": Kind(adam, changed={"sigma": 0.0625, "optimizer": named("adam", learning_rate=cosine(), b2=0.875)}),
    "full-rank": Kind(full_rank, method=eggroll.FullRankES),
    "full-rank-bfloat16": Kind(full_rank_half, method=eggroll.FullRankES, dtype=jnp.bfloat16),
}
