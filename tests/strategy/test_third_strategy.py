"""The protocol holds: a strategy of a test's own trains, saves, resumes, replays and fine-tunes; nothing else knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.strategy.methods import METHODS
from eggroll.training import Result, RunError, Saving, fit, read_metrics, replay
from tests.cli.running import call
from tests.cli.test_finetune import ASKED, OPTIONS, WEIGHTS, write_inputs
from tests.strategy.common import assert_same_bits
from tests.strategy.random_search import METHOD, RandomSearch, direction

X = jnp.eye(4)
KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, METHOD.name, METHOD)


def fitness(params: Any, x: jax.Array) -> jax.Array:
    return -jnp.mean((x @ params["w"] - 1.0) ** 2)


def run(generations: int, folder: Path | None = None, **options: Any) -> Result:
    es = RandomSearch(population=32, sigma=0.1, learning_rate=0.03)
    state = es.init({"w": jnp.zeros((4, 3))}, KEY)
    return fit(es, state, fitness, lambda _: (X,), generations=generations, folder=folder, **options)


def test_an_update_is_what_its_paper_says() -> None:
    es = RandomSearch(population=6, sigma=0.5, learning_rate=0.2, shaping="none")
    state = es.init({"w": jnp.ones((2, 3))}, KEY)
    members = es.ask(state)
    told, metrics = es.tell(state, members, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    noise = np.stack([(np.asarray(members.materialize(i)["w"]) - 1) / 0.5 for i in range(6)])
    weights = np.asarray(metrics["weights"])
    want = 1 + 0.2 * (weights[:, None, None] * noise).mean(0) / 0.5
    np.testing.assert_allclose(told.params["w"], want, rtol=1e-5)
    assert not np.allclose(noise[0], noise[1]) and direction(KEY, 0, state.params)["w"].shape == (2, 3)


def test_it_trains_saves_resumes_and_replays(tmp_path: Path) -> None:
    whole, folder = run(12), tmp_path / "run"
    assert fitness(whole.state.params, X) > -0.3 > fitness({"w": jnp.zeros((4, 3))}, X)
    saving = Saving(every=2, initial=True)
    run(5, folder, saving=saving)
    assert read_metrics(folder)[-1]["generation"] == 5
    resumed = run(12, folder, saving=saving, resume=True)
    assert resumed.resumed == 5
    assert_same_bits(resumed.state.params, whole.state.params)
    assert_same_bits(replay({"w": jnp.zeros((4, 3))}, folder / "ledger.bin").params, whole.state.params)
    other = RandomSearch(population=32, sigma=0.2, learning_rate=0.03)
    with pytest.raises(RunError, match=r"other settings: sigma: 0\.1 → 0\.2"):
        fit(
            other,
            other.init({"w": jnp.zeros((4, 3))}, KEY),
            fitness,
            lambda _: (X,),
            generations=12,
            folder=folder,
            resume=True,
        )


@pytest.mark.slow
def test_it_fine_tunes_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = ("finetune", "--model", "base", *ASKED, *OPTIONS, "--method", METHOD.name, "--out", "run")
    assert call(*command) == 0
    assert [record["generation"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    capsys.readouterr()
    assert call("replay", "base", "run", "--out", tmp_path / "again" / "model") == 0
    assert "every update has the run's norms, bit for bit" in capsys.readouterr().out
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "run" / WEIGHTS).read_bytes()
    assert call(*command, "--rank", "2", "--overwrite") == 2
    assert "rank=2 for method='random-search', which has settings of its own" in capsys.readouterr().err
    assert call(*command, "--lora", "2", "--overwrite") == 2
    assert "lora=2 for method='random-search', which cannot freeze the base" in capsys.readouterr().err
