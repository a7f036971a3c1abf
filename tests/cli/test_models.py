"""Every model trains: without differentiation, without a dense fallback, with the state that is not a parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eggroll.recipes.models import build
from eggroll.recipes.run_folder import arrays_of
from eggroll.recipes.settings import Model
from tests.cli.running import DIFFERENTIATION, arrays, no_differentiation
from tests.quick import quickest

STATISTICS = ("mean", "var")


@pytest.mark.parametrize("model", quickest(get_args(Model), "mlp"))
def test_a_model_trains_without_differentiation(run_of: Callable[[str], Path], model: str) -> None:
    # A DenseFallbackWarning would end the run too: warnings are errors here.
    before, after = arrays_of(build(model, 0)), arrays(run_of(model))
    assert before.keys() == after.keys()
    still = [path for path in before if np.array_equal(before[path], after[path])]
    assert still == []


@pytest.mark.slow
def test_batch_statistics_follow_the_data(run_of: Callable[[str], Path]) -> None:
    saved = arrays(run_of("cnn"))
    for layer in ("norm1", "norm2"):
        mean, var = (saved[f"{layer}/{name}"] for name in STATISTICS)
        assert np.abs(mean).max() > 1e-3 and np.abs(var - 1).max() > 1e-3
        assert (var > 0).all()


def test_the_guard_sees_differentiation() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with no_differentiation():
        for name in DIFFERENTIATION:
            with pytest.raises(AssertionError, match="differentiates"):
                getattr(jax, name)(jnp.sin)
        with pytest.raises(AssertionError, match="differentiates"):
            nnx.value_and_grad(lambda model: model(jnp.ones((1, 2))).sum())(model)
