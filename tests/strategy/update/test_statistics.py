"""Statistics of small fitness."""

from __future__ import annotations

import numpy as np
import pytest

from eggroll.strategy.update.shaping import shape_fitness

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
