"""What is saved comes back bit for bit; the last few and the best are kept."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from eggroll.training.checkpoints import arrays as checkpoints_arrays
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.errors import RunError
from tests.training.checkpoint_states import assert_same, bits, everything, small


@pytest.fixture(params=["one file", "TensorStore"])
def form(request, monkeypatch):
    if request.param == "TensorStore":
        monkeypatch.setattr(checkpoints_arrays, "SMALL", 0)
    return request.param


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x, tree)


@pytest.mark.parametrize("like", [everything, lambda g: abstract(everything(g))], ids=["arrays", "abstract"])
def test_every_dtype_and_structure_comes_back(tmp_path, like, form, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("pickle executes code that a file holds")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(np, "load", forbidden)
    record = {"rows": 5, "metrics": {"loss": 0.1}, "name": "é", "none": None, "list": [1, 2.5]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, everything(7), record)
        found = checkpoints.restore(like(8))
    assert_same(found.state, everything(7))
    assert (found.generation, found.record, found.skipped) == (7, record, ())
    assert (tmp_path / "7" / "arrays.npz").exists() == (form == "one file")


def test_arrays_may_be_donated_at_once_and_the_record_changed(tmp_path, form):
    step = jax.jit(lambda w: w + 1, donate_argnums=0)
    weights, record = jnp.zeros(2_000_000), {"losses": [1.0]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": weights}, record)
        record["losses"].append(2.0)
        for _ in range(5):
            weights = step(weights)
        found = checkpoints.restore({"w": weights})
    assert not np.asarray(found.state["w"]).any() and np.asarray(weights).all()
    assert found.record == {"losses": [1.0]}


def test_restored_arrays_go_wherever_the_next_computation_is(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small(1), {})
        found = checkpoints.restore(small(2))
    step = jax.jit(lambda s: jax.random.normal(s["key"], (64, 33)) + s["weights"])
    assert bits(step(found.state)) == bits(step(small(1)))


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, 0, [6]), (3, 0, [4, 5, 6]), (9, 0, [1, 2, 3, 4, 5, 6]), (2, 2, [1, 3, 5, 6]), (1, 1, [3, 6])],
)
def test_the_latest_and_the_best_are_kept(tmp_path, keep, best, left):
    scores = {1: 0.8, 2: float("nan"), 3: np.float32(0.9), 4: None, 5: -1.0, 6: 0.2}
    for some in ((1, 2, 3), (4, 5, 6)):  # two runs: the second knows the scores from the folder only
        with Checkpoints(tmp_path, keep=keep, best=best) as checkpoints:
            for generation in some:
                checkpoints.save(generation, small(generation), {}, score=scores[generation])
            checkpoints.wait()
    assert checkpoints.generations() == left
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == left
    for generation in left:
        found = checkpoints.restore(small(0), generation=generation)
        assert_same(found.state, small(generation))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "not there")
    assert checkpoints.restore(small(0)) is None and checkpoints.generations() == []
    assert not list(tmp_path.iterdir()), "looking makes nothing"
    with pytest.raises(RunError, match=r"generation 4 is not in '.*'\. Generations there: none"):
        checkpoints.restore(small(0), generation=4)


def test_a_large_state_is_left_to_tensorstore(tmp_path, monkeypatch):
    state = small(1)
    monkeypatch.setattr(checkpoints_arrays, "SMALL", sum(x.nbytes for x in jax.tree.leaves(state)) - 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state["weights"], {})
        checkpoints.wait()
        assert [(tmp_path / name / "arrays.npz").exists() for name in "12"] == [False, True]
        assert_same(checkpoints.restore(small(0), generation=1).state, state)
        assert_same(checkpoints.restore(jnp.zeros_like(state["weights"])).state, state["weights"])


def test_a_state_of_another_shape_is_refused_by_its_paths(tmp_path):
    state = small(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        other = {
            "weights": jnp.zeros((64, 32)),
            "generation": jnp.zeros((), jnp.uint32),
            "more": {"bias": jnp.zeros(1)},
        }
        with pytest.raises(RunError) as caught:
            checkpoints.restore(other)
        for told in (
            "key is in the checkpoint only",
            "more/bias is not in the checkpoint",
            "weights is float32[64,33] in the checkpoint and float32[64,32] here",
            "generation is int32[] in the checkpoint and uint32[] here",
        ):
            assert told in str(caught.value)
        with pytest.raises(RunError, match=r"key is key<fry>\[\] in the checkpoint and key<rbg>\[\] here"):
            checkpoints.restore({**state, "key": jax.random.key(0, impl="rbg")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": {"n": 3}}, "n of the state is a int"),
        ({"record": {"loss": np.float32(1)}}, "has to be JSON"),
        ({"generation": -1}, "0 or more"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_once(tmp_path, change, message):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(RunError, match=message):
            checkpoints.save(**({"generation": 1, "state": small(1), "record": {}} | change))
        checkpoints.save(2, small(2), {})
    assert checkpoints.generations() == [2]


def test_keep_and_best_are_checked(tmp_path):
    for wrong in ({"keep": 0}, {"best": -1}):
        with pytest.raises(RunError, match="keep at least 1"):
            Checkpoints(tmp_path, **wrong)


def test_a_generation_saved_again_replaces_itself(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for attempt in range(3):
            checkpoints.save(5, small(attempt), {"attempt": attempt})
        checkpoints.wait()
        assert checkpoints.generations() == [5] and len(list(tmp_path.iterdir())) == 1
        assert checkpoints.restore(small(0)).record == {"attempt": 2}


def test_another_runs_later_checkpoints_are_given_up_only_by_going_back(tmp_path):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for generation in (10, 20, 30):
            checkpoints.save(generation, small(generation), {})
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        with pytest.raises(RunError, match="generation 30, later than 15"):
            checkpoints.save(15, small(15), {})
        checkpoints.restore(small(0), generation=10)
        checkpoints.save(15, small(15), {})
        checkpoints.wait()
        assert checkpoints.generations() == [10, 15]


def test_nothing_is_logged_warned_or_loaded_before_its_time(tmp_path, caplog):
    code = (
        "import sys, eggroll.cli, eggroll.training.checkpoints.manager; print([m for m in sys.modules if 'orbax' in m])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    filters = list(logging.getLogger("absl").filters)
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.restore(small(2))
    assert not caplog.records
    assert logging.getLogger("absl").filters == filters


@pytest.mark.slow
def test_many_saves_leave_no_thread_nor_memory_behind(tmp_path, form):
    process, used = psutil.Process(), []
    state = {"weights": np.ones(1_000_000, np.float32), "more": [np.ones((i, 8), np.float32) for i in range(1, 4)]}
    state = jax.device_put(state)
    with Checkpoints(tmp_path, best=1) as checkpoints:
        for generation in range(50):
            checkpoints.save(generation, state, {}, score=generation % 7)
            checkpoints.wait()
            used.append((process.memory_info().rss, process.num_threads(), process.num_fds()))
    (start, threads, handles), (end, threads_now, handles_now) = used[20], used[-1]
    # A state left behind by each save would be 116 MB; TensorStore leaves some kilobytes of every array.
    assert end - start < (1.5e6 if form == "one file" else 10e6), end - start
    assert threads_now - threads < 10 and handles_now - handles < 10
