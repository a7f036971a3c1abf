"""What a model carries along, in the ledger of a run that keeps it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.training.ledger.carried import Carried
from eggroll.training.ledger.format import generation_bytes
from eggroll.training.ledger.journal import Journal
from eggroll.training.ledger.rebuilding import Replay
from eggroll.training.optimizers import named


def test_a_replay_has_what_was_carried_after_its_last_whole_generation(tmp_path):
    base, key, path = {"w": jnp.zeros((4, 3))}, jax.random.key(0), tmp_path / "ledger.bin"
    es = eggroll.ES(population=4, optimizer=named("sgd", learning_rate=0.1))
    state, x = es.init(base, key), jnp.eye(4)
    carries = [{"mean": np.float32([i, -i]), "steps": np.int32(i)} for i in range(3)]
    with Journal(path, es, base, key=key) as journal:
        for carry in carries[:2]:
            state, metrics = es.step(state, lambda params, x: -jnp.mean((x @ params["w"] - 1) ** 2), x)
            journal.append(metrics, carry)
    for generation, expected in ((None, carries[1]), (1, carries[0]), (0, {})):
        made = Replay(base, path)
        made.run(generation)
        assert made.carried.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(made.carried[name], array)
    whole = path.read_bytes()
    path.write_bytes(whole[: -generation_bytes(4)])  # the generation is cut off, what was carried after it is not
    made = Replay(base, path)
    made.run()
    assert (made.generations, made.carried["steps"]) == (1, 0)
    with Journal(path, es, base, key=key, after=1) as journal:
        journal.append(metrics, carries[1])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("payload", [b"", bytes(8) + b"[]\n", bytes(8) + b'{"w": ["float32", [2]]}\n' + bytes(4)])
def test_a_payload_that_holds_no_arrays_is_refused(payload):
    with pytest.raises(ValueError, match="payload"):
        Carried.unpack(payload)
    whole = Carried.of(5, {"key": jax.random.key(1), "x": jnp.ones((2, 1), jnp.bfloat16)})
    again = Carried.unpack(whole.pack())
    assert (again.generation, again.arrays["x"].dtype, again.arrays["x"].shape) == (5, jnp.bfloat16, (2, 1))
    with pytest.raises(ValueError, match="bytes more"):
        Carried.unpack(whole.pack() + b"x")
