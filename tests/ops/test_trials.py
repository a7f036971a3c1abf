"""A kernel is tried before it is used: one that is wrong, or fails, leaves its work to XLA, and a warning says so."""

from __future__ import annotations

import json
import threading
import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from eggroll.kernels import Seeded, kernel_for, lowrank_dot, rank_update
from eggroll.kernels.tpu_rank_update import rank_update_tpu
from eggroll.ops import registry, trials
from eggroll.ops.operations import lowrank_dot_reference, rank_update_reference
from eggroll.ops.truth import seeded, update_operands

SHAPE = trials.Shape(units=3, signs=1, rows=1, depth=20, columns=33)
CALLS: list[tuple[int, ...]] = []


def good(weights, left, right, *, accumulator=None):
    """A kernel that other processes could import."""
    CALLS.append(left.shape)
    return rank_update_reference(weights, left, right, accumulator=accumulator)


def wrong(weights, left, right, *, accumulator=None):
    """The TPU's kernel, with a factor of other keys."""
    other = replace(left, key=left.key ^ np.uint32(1))
    return rank_update_tpu(weights, other, right, accumulator=accumulator, interpret=True)


def uncompilable(weights, left, right, *, accumulator=None):
    """A kernel that traces, and that no compiler for this platform takes."""

    def body(out):
        out[...] = jnp.zeros_like(out)

    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct((left.size, right.size), jnp.float32))()


@pytest.fixture(autouse=True)
def own(monkeypatch, tmp_path):
    """Nothing is known when a test begins, and nothing of it afterwards."""
    for name in ("_FOUND", "_CRASHED"):
        monkeypatch.setattr(trials, name, {})
    monkeypatch.setattr(trials, "chosen", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    CALLS.clear()


@pytest.fixture
def plug(monkeypatch):
    def add(function, operation="rank_update", name="plugged", platform="cpu"):
        registry.implementations(operation)  # all are loaded: none registers itself in what is undone after the test
        known = {**registry._OPERATIONS[operation], name: registry.Implementation(name, function, (platform,))}
        monkeypatch.setitem(registry._OPERATIONS, operation, known)

    return add


def operands():
    return update_operands(SHAPE, "rademacher", "float32")


def is_right(update):
    """By the formula, from dense factors."""
    weights, left, right = operands()
    wanted = np.einsum("u,uir,ujr->ij", weights, left.array(), right.array())
    np.testing.assert_allclose(update, wanted, rtol=1e-5, atol=1e-5)


def again():
    """As another process begins."""
    trials._FOUND.clear()
    CALLS.clear()


def test_a_wrong_kernel_is_refused_with_the_difference(plug):
    plug(wrong)
    with pytest.warns(
        RuntimeWarning, match=r"plugged of rank_update \(rademacher, float32, rank 1\).* wrong .*beyond"
    ) as told:
        is_right(jax.jit(lambda *each: rank_update(*each))(*operands()))
    assert len(told) == 1 and "eggroll doctor --json" in str(told[0].message)
    assert trials.chosen == {"rank_update plugged, rademacher, float32, rank 1": "refused"}
    is_right(rank_update(*operands()))  # no second warning, which would be an error here
    named = rank_update(*operands(), implementation="plugged")  # runs all the same
    assert not np.allclose(named, rank_update(*operands()))


def test_a_kernel_that_does_not_compile_is_refused(plug):
    plug(uncompilable)
    with pytest.warns(
        RuntimeWarning, match=r"plugged .* fails: while it was compiled, ValueError: Only interpret mode"
    ):
        is_right(rank_update(*operands()))
    again()
    with pytest.warns(RuntimeWarning, match="fails, as an earlier process found: while it was compiled"):
        is_right(rank_update(*operands()))


@pytest.mark.parametrize(("distribution", "used"), [("normal", False), ("rademacher", True)])
def test_factors_of_another_dtype_than_the_input_are_left_to_xla(monkeypatch, distribution, used):
    """Of one dtype alone kernels are tried; numbers of ±1 are the same in all."""
    monkeypatch.setattr(trials, "tried", lambda key, device: trials.Verdict(*key[:2], "", "", trials.RIGHT))
    factors = [seeded(0, 2, size, 1, distribution, "float32") for size in (4, 3)]
    args = jnp.ones((2, 1, 4), jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16), *factors
    assert trials.trusted("lowrank_dot", "plugged", lowrank_dot_reference, *args) == used
    assert ("refused" in trials.chosen.values()) == (not used)


def test_after_a_crash_nothing_more_is_tried_or_kept(plug, tmp_path):
    def crashing(weights, left, right, *, accumulator=None):
        def fail():
            raise FloatingPointError("device lost")

        return jax.pure_callback(fail, jax.ShapeDtypeStruct((left.size, right.size), jnp.float32))

    plug(crashing)
    plug(good, name="second")
    with pytest.warns(RuntimeWarning) as told:
        is_right(rank_update(*operands()))
    first, second = (str(each.message) for each in told)
    assert "while it ran" in first and "device lost" in first and "may fail, too" in first
    assert "not tried, after plugged of rank_update crashed" in second
    assert not list(tmp_path.rglob("*.json"))  # of `good` nothing is known


@pytest.mark.first(2)
@pytest.mark.parametrize("where", ["shard_map", "scan", "default_device", "vmap", "eager"])
def test_it_is_tried_once_wherever_it_is_met(plug, where):
    plug(good)
    weights, left, right = operands()
    mesh = jax.make_mesh((1,), ("population",))
    spec = PartitionSpec()

    def update(weights, key):
        return rank_update(weights, replace(left, key=key), right)

    def scanned(weights, key):
        return jax.lax.scan(lambda _, x: (x, update(weights, key)), 0.0, jnp.zeros(2))[1][-1]

    def mapped(weights, key):
        return jax.vmap(update, in_axes=(0, None))(jnp.stack([weights, weights]), key)[0]

    with jax.default_device(jax.devices("cpu")[0] if where == "default_device" else None):
        functions = {"scan": jax.jit(scanned), "vmap": jax.jit(mapped), "eager": update, "default_device": update}
        functions["shard_map"] = jax.jit(
            jax.shard_map(update, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
        )
        is_right(functions[where](weights, left.key))
        tried = [shape for shape in CALLS if shape != left.shape]
        assert tried == [(67, 70, 1), (3, 70, 1)]
        is_right(functions[where](weights, left.key))
        is_right(jax.jit(update)(weights, left.key))
    assert [shape for shape in CALLS if shape != left.shape] == tried


def test_threads_try_it_once(plug):
    plug(good)
    threads = [
        threading.Thread(target=lambda: jax.jit(lambda *each: rank_update(*each))(*operands())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(shape == (67, 70, 1) for shape in CALLS) == 1


def test_other_kinds_are_tried_for_themselves(plug):
    """Right for signs, wrong for normal noise."""

    def partly(weights, left, right, *, accumulator=None):
        found = rank_update_reference(weights, left, right, accumulator=accumulator)
        return found if isinstance(left, Seeded) and left.distribution == "rademacher" else found + 1

    plug(partly)
    is_right(rank_update(*operands()))
    with pytest.warns(RuntimeWarning, match=r"normal, float32, factors as arrays, rank 1.*wrong"):
        weights, left, right = operands()
        is_right(rank_update(weights, left.array(), right.array()))


def test_a_wrong_product_has_no_kernel(plug):
    """So that factors are arrays, drawn once: the reference would draw seeded ones at every use."""

    def off(x, w, left, right, **options):
        return lowrank_dot_reference(x, w, left, right, **options).at[0, 0, 0].add(0.1)

    plug(off, "lowrank_dot")
    with pytest.warns(RuntimeWarning, match="beyond the bound, such as"):
        assert kernel_for(20, 33, 2, "rademacher", "float32") is None
    assert lowrank_dot(jnp.ones(20), jnp.ones((20, 33)), *(_one(f) for f in (20, 33))).shape == (33,)


def raising(x, w, left, right, **options):
    raise RuntimeError("of another version of Pallas")


def test_a_kernel_that_raises_while_it_is_traced_is_refused(plug):
    plug(raising, "lowrank_dot", "raising")  # of a name of its own: checks are compiled once for each
    with pytest.warns(RuntimeWarning, match="raising .* fails: .*RuntimeError: of another version of Pallas"):
        assert kernel_for(20, 33, 2, "rademacher", "float32") is None


def _one(size):
    factor = seeded(1, 1, size, 2)
    return replace(factor, key=factor.key[0])


def test_whole_tiles_alone_will_do_and_what_takes_neither_is_told(plug):
    def above(least, weights, left, right, *, accumulator=None):
        if left.size % 4 or left.size < least:
            raise NotImplementedError("too small")
        return rank_update_reference(weights, left, right, accumulator=accumulator)

    plug(partial(above, 20))
    is_right(rank_update(*operands()))
    assert next(iter(trials._FOUND.values())).state == trials.RIGHT
    plug(partial(above, 300), name="large")
    large = update_operands(replace(SHAPE, depth=400), "rademacher", "float32")
    with pytest.warns(RuntimeWarning, match="large .* is used without having been checked: .*too small"):
        rank_update(*large, implementation="large")


def test_what_was_found_is_remembered(plug, tmp_path):
    plug(good)
    is_right(rank_update(*operands()))
    (file,) = tmp_path.rglob("*.json")
    content = json.loads(file.read_text())
    assert content["found"] == {"state": "right", "reason": ""}
    assert {content["key"][name] for name in ("jax", "chip", "kind")} == {
        jax.__version__, "cpu", "rademacher, float32, rank 1"
    }  # fmt: skip
    again()
    is_right(rank_update(*operands()))
    assert (67, 70, 1) not in CALLS
    assert next(iter(trials._FOUND.values())).remembered


def test_a_cache_that_cannot_be_written_costs_a_check_and_nothing_else(plug, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    plug(good)
    is_right(rank_update(*operands()))
    (verdict,) = trials._FOUND.values()
    assert verdict.state == trials.RIGHT and "NotADirectoryError" in verdict.kept


def test_a_full_device_says_nothing_of_the_kernel(plug, tmp_path):
    plug(_full)
    with pytest.warns(RuntimeWarning, match="RESOURCE_EXHAUSTED"):
        is_right(rank_update(*operands()))
    assert not list(tmp_path.rglob("*.json"))


def _full(*_, **__):
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_kernels_can_be_switched_off(plug, monkeypatch):
    plug(wrong)
    monkeypatch.setenv(registry.SWITCH, "off")
    is_right(rank_update(*operands()))
    assert not trials._FOUND
    monkeypatch.setenv(registry.SWITCH, "no")
    with pytest.raises(ValueError, match="got EGGROLL_KERNELS='no'; 'off' is required"):
        rank_update(*operands())


def test_nothing_is_loaded_where_there_is_no_kernel(monkeypatch):
    monkeypatch.setattr(registry, "trusted", None)
    with warnings.catch_warnings():
        is_right(rank_update(*operands()))
