"""The noise, and all that follows from it, is the same to the last bit however members are spread out."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from tests.strategy.common import KEY, X, Y, assert_close, assert_same_bits, es, fitness, loss, params
from tests.truth import layouts

pytestmark = pytest.mark.optimised  # bits, as users get them

ROOT = pathlib.Path(__file__).parents[2]
ALL_AT_ONCE = layouts.POPULATION


@functools.cache
def alone():
    """All members at once, on one device."""
    return layouts.outputs(ALL_AT_ONCE)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype, name
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.slow  # eight devices, below, come in chunks too
def test_chunks_of_any_size():
    """An odd one, rounded up to whole pairs, of which the last chunk has fewer: 24 pairs as 4·5 + 4."""
    assert_same(layouts.outputs(9), alone())


@pytest.mark.slow
def test_eight_devices(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    file = tmp_path / "eight.npz"
    command = [sys.executable, "-W", "error", "-m", "tests.truth.layouts", str(file), "8"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = np.load(file)
    for chunk in ("auto", "4"):
        got = {name.removeprefix(chunk): results[name] for name in results.files if name.startswith(chunk)}
        assert_same(got, alone())


@functools.cache
def generation():
    """The part of it that the tests below look at."""
    return layouts.generation(ALL_AT_ONCE)


def test_the_members_differ_from_each_other():
    kernels = generation()["['apply'][0]['kernel']"]
    assert len({k.tobytes() for k in kernels}) == layouts.POPULATION
    assert len(set(generation()["['apply'][1]"].tolist())) > layouts.POPULATION / 2


def test_auxiliary_output_is_the_mean_or_what_members_share():
    out = generation()
    p = {k: out[f"['apply'][0]['{k}']"] for k in ("kernel", "bias")}
    np.testing.assert_array_equal(out["['step aux']['bias']"], p["bias"].mean(0))
    counts, values = (8 * np.abs(p["kernel"])).sum((1, 2)).astype(int), out["['apply'][1]"]
    assert len(set(counts.tolist())) > 1, "the members agree: the test could not fail"
    assert out["['step aux']['count']"] == np.float32(counts.mean())
    np.testing.assert_array_equal(out["['step aux']['key']"], jax.random.key_data(jax.random.fold_in(layouts.KEY, 3)))
    assert 0 < out["['step aux']['large']"] == np.float32((values > layouts.LARGE).mean()) < 1


def test_rows_of_members_and_groups_reach_their_members():
    out = generation()
    p = {k: out[f"['apply'][0]['{k}']"].astype(np.float64) for k in ("kernel", "bias")}
    shared, groups, own = (np.asarray(a) for a in (layouts.SHARED, layouts.PER_GROUP, layouts.PER_MEMBER))
    for i in range(layouts.POPULATION):
        rows = groups[i // (layouts.POPULATION // layouts.GROUPS)] + shared
        residual = rows @ p["kernel"][i] + p["bias"][i] - own[:, i]
        assert (residual**2).sum() == out["['apply'][1]"][i]
    np.testing.assert_allclose(out["['fitness mean']"], -out["['apply'][1]"].mean(dtype=np.float64), rtol=1e-6)


def test_jit_or_not():
    """Compiled by the library, inside a user's jit, and operation by operation: the same dense members."""
    strategy = es(4, 0.25, fallback="allow")
    state = strategy.init(params(), KEY)
    members = strategy.ask(state)
    compiled = members.apply(lambda p: p)
    by_user = jax.jit(lambda state: strategy.ask(state).apply(lambda p: p))(state)
    assert_same_bits(by_user, compiled)
    with jax.disable_jit():
        assert_same_bits(strategy.ask(state).apply(lambda p: p), compiled)
    one_by_one = [members.materialize(i) for i in range(4)]
    assert_same_bits(jax.tree.map(lambda *a: jnp.stack(a), *one_by_one), compiled)


def test_chunks_of_any_numbers():
    """Members bit for bit, sums to rounding; pairs one by one."""

    def results(chunk):
        f = eggroll.value_and_grad(loss, population=32, sigma=0.1, chunk=chunk)
        strategy = es(32, chunk=chunk, fallback="allow")
        members = strategy.ask(strategy.init(params(), KEY)).apply(lambda p: p)
        return f(params(), X, Y, key=KEY), members

    (sums, members), (all_sums, all_members) = results(2), results(32)
    assert_close(sums, all_sums, 1e-5)
    assert_same_bits(members, all_members)


def test_generations_and_seeds_have_noise_of_their_own():
    strategy = es(4)
    state = strategy.init(params(), KEY)
    later, _ = strategy.step(state, fitness, X, Y)
    other = strategy.init(params(), jax.random.key(1))
    drawn = [strategy.ask(s).materialize(0)["kernel"] - s.params["kernel"] for s in (state, later, other)]
    signs = {np.sign(np.asarray(d)).tobytes() for d in drawn}
    assert len(signs) == 3
