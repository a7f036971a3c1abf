"""Full-rank ES in the training loop: resumed and replayed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.training import Saving, fit, named, replay, schedule
from eggroll.training.errors import RunError
from eggroll.training.ledger.reader import Reader, Settings
from eggroll.training.steps import Scored
from tests.training.ledger_runs import KEY, assert_same_state, run

pytestmark = pytest.mark.optimised  # bits, as users get them

BASE = {"a": {"w": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)}, "frozen": np.ones(24, np.float32)}


def base(dtype: Any = jnp.float32) -> Any:
    """A matrix that moves and a vector that does not."""
    return {"a": {"w": jnp.asarray(BASE["a"]["w"], dtype)}, "frozen": jnp.asarray(BASE["frozen"])}


def strategy(**options: Any) -> eggroll.FullRankES:
    """A small population."""
    return eggroll.FullRankES(**{"population": 6, "sigma": 0.1, "rules": [("frozen", "frozen")], **options})


def step() -> Scored:
    """A score in Python of what a member returns."""
    return Scored(lambda params, x: params["a"]["w"] @ x, lambda output, x: -float(np.square(output - 1).sum()))


def batch(generation: int) -> Any:
    """Another one in every generation."""
    return jnp.full(6, 1.0 + generation)


@pytest.mark.slow
def test_resumed_run_is_the_uninterrupted_one_and_its_replay_too(tmp_path: Path) -> None:
    """In half precision, where the rounding has to be the same as well."""
    rate = schedule("inverse_sqrt_schedule", init_value=0.05) * 2
    options: dict[str, Any] = {"sigma": schedule("constant_schedule", value=0.1), "learning_rate": rate}
    whole, parts, saving = tmp_path / "whole", tmp_path / "parts", Saving(every=2)

    def go(folder: Path, generations: int, resume: bool = False) -> eggroll.State:
        es = strategy(**options)
        state = es.init(base(jnp.bfloat16), KEY)
        return fit(
            es, state, step(), batch, generations=generations, folder=folder, resume=resume, saving=saving
        ).state  # fmt: skip

    state = go(whole, 5)
    go(parts, 3)
    assert_same_state(go(parts, 5, resume=True), state)
    for folder in (whole, parts):
        assert_same_state(replay(base(jnp.bfloat16), folder / "ledger.bin"), state)
    assert (state.params["frozen"] == 1).all()


def test_ledger_says_the_method_and_every_generation_can_be_rebuilt(tmp_path: Path) -> None:
    """From the file alone."""
    path = tmp_path / "ledger.bin"
    states = run(path, 3, es=strategy(learning_rate=0.3), base=base(), fitness=lambda p, x: p["a"]["w"].sum() * x[0],
                 args=(jnp.ones(2),))  # fmt: skip
    settings = next(entry for entry in Reader(path) if isinstance(entry, Settings)).content
    assert (settings["method"], settings["learning_rate"], settings["optimizer"]) == ("full-rank", 0.3, None)
    for generation, state in enumerate(states):
        assert_same_state(replay(base(), path, generation=generation), state)
    with pytest.raises(RunError, match="full-rank ES has none"):
        replay(base(), path, optimizer=named("sgd", learning_rate=0.1))


def test_resumption_refuses_another_method_or_rate(tmp_path: Path) -> None:
    """By name."""
    es = strategy()
    state = es.init(base(), KEY)
    fit(es, state, step(), batch, generations=1, folder=tmp_path)
    for other, says in (
        (strategy(learning_rate=0.2), "learning_rate: null → 0.2"),
        (eggroll.ES(population=6, sigma=0.1, rules=[("frozen", "frozen")]), 'method: "full-rank" → nothing'),
    ):
        with pytest.raises(RunError, match=says):
            fit(other, other.init(base(), KEY), step(), batch, generations=2, folder=tmp_path, resume=True)


def test_a_rate_that_json_cannot_hold_writes_no_ledger(tmp_path: Path) -> None:
    """And says what to use."""
    es = strategy(learning_rate=optax.linear_schedule(0.1, 0.01, 6))
    with pytest.raises(RunError, match="schedule"):
        run(tmp_path / "ledger.bin", 1, es=es, base=base(), fitness=lambda p: p["a"]["w"].sum(), args=())
