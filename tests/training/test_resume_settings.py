"""On resumption, settings that have no name of their own are compared too; misspelt metrics are told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import optax
import pytest

from eggroll.training import EarlyStopping, RunError, Saving
from eggroll.training import loop as module
from eggroll.training.processes import talk as processes_talk
from tests.training.problems import assert_same, run, strategy, usual

LAST = 8


def begun(folder: Path, **options: Any) -> None:
    run(folder, 2, **options)


def refused(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(RunError, match=message):
        run(folder, LAST, resume=True, **options)


def test_a_plain_optimizer_that_changed_is_named(tmp_path: Path) -> None:
    begun(tmp_path, es=strategy(optimizer=optax.adam(0.05)))
    for other in (optax.adam(0.05, b1=0.8), optax.adam(0.1)):
        refused(tmp_path, r"settings: optimizer\.values\.b: -.* → -.*more results of", es=strategy(optimizer=other))


def test_schedules_alike_at_first_and_shaping_of_ones_own(tmp_path: Path) -> None:
    falls = [optax.linear_schedule(0.1, 0.01, steps) for steps in (100, 50)]
    begun(tmp_path, es=strategy(sigma=falls[0], shaping=lambda fitness: fitness - fitness.mean()))
    refused(
        tmp_path,
        r"settings: sigma\.values\.1: .*; shaping\.values\.spread, 8 members: ",
        es=strategy(sigma=falls[1], shaping=lambda fitness: fitness - fitness.max()),
    )


def test_functions_that_are_only_written_otherwise_go_on(tmp_path: Path) -> None:
    """Under another name, too, which the ledger holds of a shaping."""

    def centred(fitness: Any) -> Any:
        return -fitness.mean() + fitness

    begun(tmp_path, es=strategy(optimizer=optax.sgd(0.1, 0.9), shaping=lambda fitness: fitness - fitness.mean()))
    written = optax.chain(optax.trace(0.9), optax.scale(-0.1))
    assert run(tmp_path, 3, resume=True, es=strategy(optimizer=written, shaping=centred)).resumed == 2


@pytest.mark.slow
def test_a_run_without_a_choice_for_small_layers_goes_on_as_it_was(tmp_path: Path) -> None:
    """Earlier versions had factors of any size; what they left does not speak of them."""
    before: dict[str, Any] = {"rank": 2, "small_layers": "low_rank"}
    whole = run(tmp_path / "whole", 3, es=strategy(**before))
    begun(tmp_path / "part", es=strategy(**before))
    assert "small_layers" not in json.loads((tmp_path / "part/config.json").read_text())["strategy"]
    assert_same(run(tmp_path / "part", 3, resume=True, es=(now := strategy(rank=2))), whole)
    assert now.plan is not None and {leaf.path: leaf.kind for leaf in now.plan.leaves}["w"] == "low_rank"
    begun(tmp_path / "new", es=strategy(rank=2))
    refused(tmp_path / "new", 'settings: small_layers: "dense" → nothing', es=strategy(**before))


def test_settings_with_the_names_of_the_commands_options_are_compared(tmp_path: Path) -> None:
    begun(tmp_path, settings={"keep": 3, "out": {"width": 8}})
    run(tmp_path, 3, resume=True, settings={"keep": 5, "out": {"width": 8}}, may_change=["keep"])
    refused(tmp_path, r"keep: 3 → 4; out\.width: 8 → 9", settings={"keep": 4, "out": {"width": 9}})


def test_settings_with_the_names_of_descriptions_are_compared(tmp_path: Path) -> None:
    old = {"optimizer": "adam", "data": {"function": "f", "values": 1}}
    begun(tmp_path, settings=old)
    refused(
        tmp_path,
        r'optimizer: "adam" → null; data.values: 1 → 2',
        settings={"optimizer": None, "data": {"function": "f", "values": 2}},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping": EarlyStopping("test_acuracy", 2)}, "got 'test_acuracy' as the metric of early_stopping"),
        ({"saving": Saving(score="acuracy")}, "got 'acuracy' as the score of saving.*one of fitness_best.*is required"),
    ],
    ids=["early stopping", "score"],
)
def test_a_misspelt_metric_is_an_error_at_the_first_measurement(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        run(tmp_path, LAST, **options)
    assert caught.value.result.generation == 0
    run(tmp_path, 1)  # nothing is left that would have to be overwritten


def test_who_starts_is_told_where(tmp_path: Path) -> None:
    told: list[int] = []
    run(tmp_path, 2, started=told.append)
    run(tmp_path, 3, started=told.append, resume=True)
    assert told == [0, 2]


@pytest.mark.parametrize("where", ["opening", "last save"])
def test_a_process_that_is_lost_while_the_folder_is_opened_or_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def lost(*_: Any, **options: Any) -> None:
        if where == "opening" or options.get("last"):
            monkeypatch.setattr(processes_talk, "count", lambda: 2)
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo: connection closed by peer")

    monkeypatch.setattr(processes_talk, "_LOST", [])
    if where == "opening":
        monkeypatch.setattr(module.Opening, "opened", lost)
    else:
        monkeypatch.setattr(module.Store, "reached", lost)
    with pytest.raises(RunError, match=r"lost contact with another process.*start again with --resume"):
        run(tmp_path, 1, es=usual())


def test_what_an_earlier_configuration_has_and_nobody_knows_is_named(tmp_path: Path) -> None:
    begun(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config |= {"precision": "float16"}
    config["strategy"]["momentum"] = 0.9
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "MANIFEST.json").unlink()  # as another version would have written it
    refused(tmp_path, 'settings: momentum: 0.9 → nothing; precision: "float16" → nothing')
