"""Statistics of small fitness, and of losses some at a time."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from eggroll.strategy.update import shaping
from eggroll.strategy.update.shaping import shape_fitness, shape_rows

pytestmark = pytest.mark.optimised  # bits, as users get them


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("name", "scale"), [("none", 1e-20), ("none", 1e-36), ("zscore", 1e-30), ("zscore", 2e-38), ("group", 2e-38)]
)
def test_small_fitness_is_weighed_as_any_other(name, scale):
    """Down to the smallest normal number; smaller differences are flushed to zero only where they are the result."""
    values = np.linspace(1, 2, 12)
    weights, _ = shape_fitness(np.float32(scale * values), shaping=name, antithetic=True, groups=3)
    expected, _ = shape_fitness(np.float32(values), shaping=name, antithetic=True, groups=3)
    expected = np.asarray(expected, np.float64) * (scale if name == "none" else 1)
    np.testing.assert_allclose(np.asarray(weights, np.float64), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["zscore", "centered_rank"])
def test_losses_some_at_a_time_have_the_weights_of_all_at_once(name, monkeypatch):
    """Bit for bit, with a loss that is none, and a last part that overlaps the one before."""
    fitness = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    fitness[3, 2] = np.nan
    whole = jax.jit(lambda f: shape_rows(f, shaping=name, antithetic=True))(fitness)
    monkeypatch.setattr(shaping, "AT_ONCE", 24)
    parts = jax.jit(lambda f: shape_rows(f, shaping=name, antithetic=True))(fitness)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1], whole[1])
