"""Stochastic rounding: neighbours only, right on average, and nothing small is lost in an update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.strategy.update.dense import rounded_block

pytestmark = pytest.mark.optimised  # bits, as users get them

KEY = jnp.array([5, 7], jnp.uint32)
TRIES = 1 << 14
DEVIATIONS = 5.0  # 6e-7 of normal means lie beyond


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_mean_is_the_value(dtype: Any) -> None:
    """A rounding deviates by at most half the gap of the neighbours: the mean of `n` by at most `gap/(2·√n)`."""
    small = [3e-6, -4.56e-5, 7.1e-8] if dtype == jnp.float16 else [3e-30]  # float16's are subnormal
    values = np.array([1.001, -1.003, 0.999, 300.7, 0.0123, -3.3e-4, *small], np.float32)
    rows = jax.jit(lambda v: rounded_block(jnp.repeat(v, TRIES), dtype, KEY, 0))(values).reshape(len(values), TRIES)
    for value, row in zip(values, np.asarray(rows).astype(np.float64), strict=True):
        below, above = _neighbours(value, dtype)
        assert set(np.unique(row)) == {below, above}
        assert abs(row.mean() - value) < DEVIATIONS * (above - below) / 2 / TRIES**0.5


def _neighbours(value: np.float32, dtype: Any) -> tuple[float, float]:
    """Found among all numbers of the dtype."""
    every = _finite(dtype).astype(np.float64)
    return float(every[every < value].max()), float(every[every > value].min())


def _finite(dtype: Any) -> np.ndarray:
    bits = np.arange(1 << 16, dtype=np.uint16)
    infinity = np.array(np.inf, jnp.dtype(dtype)).view(np.uint16)
    return bits[(bits & 0x7FFF) < infinity].view(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_what_the_dtype_holds_stays_and_what_is_finite_stays_finite(dtype: Any) -> None:
    """All numbers, and infinity; and those beyond the largest."""
    every = _finite(dtype)
    smallest = float(jnp.finfo(jnp.float32).tiny)  # XLA takes smaller ones for zero
    kept = every[(np.abs(every.astype(np.float64)) >= smallest) | (every == 0)]
    kept = np.concatenate([kept, np.array([np.inf, -np.inf], kept.dtype)])
    beyond = np.array([3.4e38, -3.4e38] if dtype == jnp.bfloat16 else [65519.0, -1e30], np.float32)
    given = np.concatenate([kept.astype(np.float32), np.repeat(beyond, 50)])
    got = np.asarray(jax.jit(lambda v: rounded_block(v, dtype, KEY, 0))(given)).astype(np.float64)
    np.testing.assert_array_equal(got[: len(kept)], kept.astype(np.float64))
    assert np.isfinite(got[len(kept) :]).all()


@pytest.mark.slow
def test_updates_far_below_a_half_precision_step_arrive() -> None:
    """Of steps a tenth of the gap, the part that arrives is 1 on average; rounding to nearest would leave all of it."""
    n, gap = 1 << 14, 2.0**-8  # below 1, in bfloat16
    es = eggroll.FullRankES(population=2, antithetic=True, sigma=0.5, learning_rate=gap / 10)
    state = es.init({"w": jnp.ones(n, jnp.bfloat16)}, jax.random.key(1))
    members = es.ask(state)
    new, metrics = es.tell(state, members, [1.0, 0.0])
    change = -np.asarray(members.gradient(metrics["weights"])["w"]) * 0.5 * gap / 10
    moved = np.asarray(new.params["w"]).astype(np.float64) - 1
    size = np.sum(change**2)
    # The gap above 1 is twice that below.
    assert abs(np.sum(change * moved) / size - 1) < DEVIATIONS * gap / size**0.5
    np.testing.assert_allclose(metrics["update_norm"], size**0.5, rtol=1e-4)
    assert new.params["w"].dtype == jnp.bfloat16
    assert new.master == ()


def test_reused_noise_is_not_rounded_alike() -> None:
    """Else the same weights would be favoured again and again."""
    es = eggroll.FullRankES(population=2, antithetic=True, sigma=0.5, learning_rate=1e-3, noise_reuse=2)
    state = es.init({"w": jnp.ones(1 << 14, jnp.bfloat16)}, jax.random.key(1))
    one, _ = es.tell(state, es.ask(state), [1.0, 0.0])
    later = eggroll.State(state.params, (), (), state.key, jnp.int32(1))
    two, _ = es.tell(later, es.ask(later), [1.0, 0.0])
    assert (one.params["w"] != two.params["w"]).any()
