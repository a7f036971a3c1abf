"""Random programs against each member's dense parameters, in float64; `bench.fuzz` runs as many as one likes."""

from __future__ import annotations

import jax
import pytest

from bench.fuzz import attempt


@pytest.mark.first(1)
@pytest.mark.parametrize("first", range(0, 50, 10))
def test_random_programs(first):
    with jax.enable_x64(True):
        found = [attempt(seed, n_steps=5) for seed in range(first, first + 10)]
    bad = [f"seed {f.seed}: {f.outcome}\n{f.program}\n{f.said}" for f in found if f.outcome != "equal"]
    assert not bad, "\n\n".join(bad)
