"""How a run ends early when it is called from Python."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.recipes.data import digits
from eggroll.recipes.digits import Training, train
from eggroll.recipes.run_folder import load, read_metrics
from eggroll.recipes.settings import settings_for
from tests.cli.running import quick_compilation

TINY = {"population": 4, "generations": 5, "batch_size": 8}


def accuracy(folder: Path) -> float:
    data = digits()
    logits = load(folder)(jnp.asarray(data.test_images))  # type: ignore[operator]
    return float(np.mean(np.argmax(np.asarray(logits), axis=-1) == data.test_labels))


def test_a_run_that_is_asked_to_stop_writes_what_there_is(tmp_path: Path) -> None:
    seen: list[dict] = []
    settings = settings_for("mlp", **TINY, out=tmp_path)
    with quick_compilation():
        run = train(settings, show=seen.append, asked_to_stop=lambda: len(seen) > 1)
    assert (run.ended, run.generations) == ("interrupted", 2)
    assert [record["generation"] for record in seen] == [0, 1, 2]
    assert seen[1:] == read_metrics(tmp_path)
    assert accuracy(tmp_path) == pytest.approx(run.after, abs=1e-12)


def test_an_interrupt_in_the_first_generation_writes_the_initial_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Training) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "step", interrupted)
    run = train(settings_for("mlp", **TINY, out=tmp_path))
    assert (run.ended, run.generations, run.before) == ("interrupted", 0, run.after)
    assert accuracy(tmp_path) == pytest.approx(run.before, abs=1e-12)
    assert read_metrics(tmp_path) == [] and not (tmp_path / "curve.png").exists()
