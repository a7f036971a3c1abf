"""Runs that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest

from tests.cli.running import no_differentiation, train


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished tiny run of a model, made where JAX cannot differentiate. Not to be written to."""

    @cache
    def run(model: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "parent" / model
        # Noise on activations asks for the transposes of single operations, by `jax.vjp`.
        with nullcontext() if model == "sign" else no_differentiation():
            assert train(folder, "--model", model) == 0
        return folder

    return run


@pytest.fixture
def finished(run_of: Callable[[str], Path]) -> Path:
    """The folder of a finished tiny run of the MLP."""
    return run_of("mlp")
