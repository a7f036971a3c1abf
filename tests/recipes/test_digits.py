"""How a run on the digits ends early when it is called from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.recipes.data import digits
from eggroll.recipes.digits import train
from eggroll.recipes.run_folder import load
from eggroll.recipes.settings import settings_for
from eggroll.strategy.es import ES
from eggroll.training import read_metrics
from tests.cli.running import arrays
from tests.quick import quickest

TINY: dict[str, Any] = {"population": 4, "generations": 5, "batch_size": 8}


LONGER = TINY | {"generations": 200}


def accuracy(folder: Path) -> float:
    data = digits()
    logits = load(folder)(jnp.asarray(data.test_images))  # type: ignore[operator]
    return float(np.mean(np.argmax(np.asarray(logits), axis=-1) == data.test_labels))


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_writes_what_there_is_and_goes_on(tmp_path: Path) -> None:
    seen: list[dict] = []
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    run = train(settings_for(**TINY, out=parts), show=seen.append, asked_to_stop=lambda: len(seen) > 2)
    assert (run.ended, run.generations) == ("interrupted", 2)
    assert [record["generation"] for record in seen] == [0, 1, 2]
    assert seen[1:] == read_metrics(parts)
    assert accuracy(parts) == pytest.approx(run.after, abs=1e-12)

    train(settings_for(**TINY, out=whole))
    run = train(settings_for(**TINY, out=parts, resume=True))
    assert (run.ended, run.generations, run.resumed) == ("finished", 5, 2)
    first, second = arrays(whole), arrays(parts)
    for path in first:
        np.testing.assert_array_equal(first[path], second[path])


@pytest.mark.parametrize("model", quickest(["mlp", "cnn"]))
def test_a_model_with_state_of_its_own_goes_on(model: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings_for(model, **TINY, out=whole))
    train(settings_for(model, **TINY, out=parts), asked_to_stop=lambda: len(read_metrics(parts)) == 3)
    train(settings_for(model, **TINY, out=parts, resume=True))
    first, second = arrays(whole), arrays(parts)
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path])


def test_an_interrupt_in_the_first_generation_writes_the_initial_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: ES, *args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ES, "step", interrupted)
    run = train(settings_for("mlp", **TINY, out=tmp_path))
    assert (run.ended, run.generations, run.before) == ("interrupted at once", 0, run.after)
    assert accuracy(tmp_path) == pytest.approx(run.before, abs=1e-12)
    assert read_metrics(tmp_path) == [] and not (tmp_path / "curve.png").exists()


@pytest.mark.slow
def test_a_run_without_progress_ends(tmp_path: Path) -> None:
    run = train(settings_for(**LONGER, sigma=1e-6, learning_rate=1e-9, patience=2, out=tmp_path))
    assert (run.ended, run.generations) == ("stopped early", 20)  # measured at 1, 10 and 20
