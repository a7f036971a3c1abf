"""`flax.serialization` of a state: there and back bit for bit, and nothing else taken for it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
from flax import nnx

import eggroll
from eggroll.training import Result

OPTIMIZER = optax.chain(optax.clip(1.0), optax.adamw(1e-2))
LATE = """
import sys, jax, jax.numpy as jnp, eggroll
state = eggroll.ES(population=4).init({"w": jnp.ones((2, 2))}, jax.random.key(0))
assert "flax" not in sys.modules
from flax import serialization
assert len(serialization.from_bytes(state, serialization.to_bytes(state)).params["w"]) == 2
"""


def params(value: float) -> dict[str, Any]:
    return {
        "a": {"b": jnp.full((3, 2), value, jnp.bfloat16)},
        "c": [jnp.full(2, value)],
        "still": jnp.arange(3),
        "e": jnp.zeros((0, 2)),
    }


def state_of(value: float, seed: int = 0, **options: Any) -> eggroll.State:
    es = eggroll.ES(**{"population": 8, "optimizer": OPTIMIZER, "rules": [("still", "frozen")], **options})
    return es.init(params(value), jax.random.key(seed))


def moved() -> eggroll.State:
    es = eggroll.ES(population=8, optimizer=OPTIMIZER, rules=[("still", "frozen")])
    fitness = lambda p: p["a"]["b"].sum().astype("float32") + p["c"][0].sum() + p["e"].sum()  # noqa: E731
    return es.step(state_of(1.0, seed=3), fitness)[0]


def bits(state: eggroll.State) -> Any:
    """Keys as their integers."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), state)


@pytest.mark.parametrize("how", ["dict", "bytes", "msgpack"])
def test_a_state_comes_back_bit_for_bit(how):
    state, like, tool = moved(), state_of(0.0), flax.serialization
    if how == "dict":
        back = tool.from_state_dict(like, tool.to_state_dict(state))
    elif how == "bytes":
        back = tool.from_bytes(like, tool.to_bytes(state))
    else:
        back = tool.from_state_dict(like, tool.msgpack_restore(tool.msgpack_serialize(tool.to_state_dict(state))))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert [(x.dtype, type(x)) for x in jax.tree.leaves(back)] == [(x.dtype, type(x)) for x in jax.tree.leaves(state)]
    for ours, theirs in zip(jax.tree.leaves(bits(back)), jax.tree.leaves(bits(state)), strict=True):
        assert ours.tobytes() == theirs.tobytes() and ours.shape == theirs.shape
    assert int(back.generation) == 1 and back.key == jax.random.key(3)


def test_what_belongs_to_another_run_is_refused_by_name():
    found = flax.serialization.to_state_dict(moved())
    for other, message in (
        (state_of(0.0, optimizer=optax.sgd(0.1)), "'opt_state' of a state has '1/0/count', which is unknown"),
        (state_of(0.0, rules=[("still|c/0", "frozen")]), "'opt_state' of a state has"),
    ):
        with pytest.raises(ValueError, match=message):
            flax.serialization.from_state_dict(other, found)
    like = state_of(0.0)
    for change, message in (
        ({"generation": np.float32(1)}, r"got float32\[\] for 'generation'.*int32\[\]"),
        ({"momentum": np.ones(3)}, "a state has 'momentum', which is unknown"),
        ({"key": np.zeros(2, np.uint32)}, "the key 'key' has no 'impl'"),
        ({"key": {**found["key"], "impl": "key<rbg>"}}, "got key<rbg> for 'key'"),
    ):
        with pytest.raises(ValueError, match=message):
            flax.serialization.from_state_dict(like, {**found, **change})


@pytest.mark.slow
def test_flax_may_be_imported_after_the_state_was_made():
    done = subprocess.run([sys.executable, "-W", "error", "-c", LATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_states_and_results_say_what_they_are():
    es = eggroll.ES(population=8, sigma=0.1)
    params = {"w": jnp.zeros((40, 30)), "b": jnp.zeros(3, jnp.bfloat16)}
    state = es.init(params, jax.random.key(0))
    text = "State(generation=0, params=<2 arrays, 1,203 numbers, bfloat16/float32>)"
    assert repr(state) == text and repr(es.ask(state)) == "Members(population=8, generation=0)"
    result = Result(state, {"mean": jnp.zeros(5)}, "finished", 1.25, 0)
    said = f"Result(ended='finished', seconds=1.25, resumed=0, state={text}, carry=<1 array, 5 numbers, float32>)"
    assert repr(result) == said
    model = eggroll.nnx.ES(population=8, sigma=0.1).init(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jax.random.key(0))
    assert repr(model) == "ModelState(generation=0, params=<2 arrays, 9 numbers, float32>)"
    # Of other leaves, as `jax.tree.map` makes them, and while something is traced.
    assert repr(jax.tree.map(lambda _: None, state)) == "State(generation=None, params=<0 arrays, 0 numbers>)"
    jax.eval_shape(lambda state: repr(state) and state.params["b"], state)


def test_an_explanation_is_its_table_in_a_notebook_too(monkeypatch):
    told = eggroll.explain(lambda params, x: x @ params["w"], {"w": jnp.zeros((8, 4))}, jnp.eye(8))
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    assert repr(told) == str(told) and "w" in str(told) and "rank 1" in str(told)
