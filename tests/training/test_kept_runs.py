"""Ledgers and checkpoints of the past are replayed and resumed by whatever code is current; see `kept/make.py`.

Keys, fitness, weights and settings have to be those that were kept, everywhere. Parameters are compared bit for bit
where the versions of JAX, jaxlib and optax and the processor are those of `made.json`, elsewhere to rounding. Which
programs are optimised is decided here, as it was when the runs were made: it changes bits.

Every replay and resumption compiles programs of its own, so that the default run has some of them:
`python -m pytest -m "slow or not slow"` with this file has all.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from eggroll.training import read_metrics, replay
from eggroll.training.folder.described import describe
from eggroll.training.folder.settings import as_json, check_same
from eggroll.training.ledger.format import digests
from eggroll.training.ledger.reader import Reader, Settings
from eggroll.training.ledger.settings import ENVIRONMENT, settings_of
from tests.cli.running import call
from tests.quick import quickest
from tests.training.kept.commands import METHODS, TRAIN, finetune
from tests.training.kept.comparing import assert_same, exact, leaves, loaded
from tests.training.kept.places import compiling
from tests.training.kept.runs import HERE, KEPT, KINDS, LAST, MIDDLE, base

TIMES = {"seconds", "members_per_second", "tokens_per_second"}
MOMENTS = (MIDDLE, LAST)
WEIGHTS = "model/model.safetensors"
QUICK = {
    "replayed": ("groups", "full-rank"),
    "resumed": (),  # `test_a_checkpoint_is_read` has the default's
}
# Their steps are those of others, which go on: the noise of `groups`, dense noise in half precision.
READ = ("normal", "single", "full-rank")


def kinds(quick: str) -> pytest.MarkDecorator:
    """All kinds, each with its way to compile; the default run has those of `QUICK`."""
    pairs = {name: (kind.optimized, name) for name, kind in KINDS.items() if quick == "replayed" or name not in READ}
    cases = quickest(pairs.values(), *(pairs[name] for name in QUICK[quick]))
    return pytest.mark.parametrize(("mode", "name"), cases, indirect=["mode"])


unoptimized = pytest.mark.parametrize("mode", [False], indirect=True)


@pytest.fixture(scope="module")
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs compiled as those of the kept run."""
    with compiling(request.param):
        yield


@pytest.fixture
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a kept folder, the current one."""
    copy = tmp_path / request.param
    shutil.copytree(HERE / request.param, copy)
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(copy)
    return copy


def within(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def metrics_of(expected: dict[str, np.ndarray], generation: int) -> dict[str, np.ndarray]:
    return within(expected, f"{generation}/metrics/")


def state_of(expected: dict[str, np.ndarray], generation: int) -> dict[str, np.ndarray]:
    at = within(expected, f"{generation}/")
    return {name: array for name, array in at.items() if name.startswith(("params", "master", "opt_state"))}


def recorded(ledger: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The settings of a ledger, without where it was written, and its generations."""
    settings: list[dict[str, Any]] = []
    generations = []
    for entry in Reader(ledger):
        if isinstance(entry, Settings):
            content = {name: x for name, x in entry.content.items() if name not in ENVIRONMENT}
            settings += [content] * (content not in settings)
        else:
            generations.append({name: getattr(entry, name) for name in KEPT})
    return settings, generations


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{name: x for name, x in record.items() if name not in TIMES} for record in read_metrics(folder)]


@pytest.mark.parametrize("name", KINDS)
def test_a_ledger_has_what_the_run_had(name: str) -> None:
    expected, (_, generations) = loaded(HERE / name / "expected.npz"), recorded(HERE / name / "run/ledger.bin")
    assert len(generations) == LAST
    for number, record in enumerate(generations, 1):
        assert_same(record, metrics_of(expected, number), bits=True)


@kinds("replayed")
@pytest.mark.usefixtures("mode")
def test_a_ledger_is_replayed(name: str) -> None:
    kind, expected, found = KINDS[name], loaded(HERE / name / "expected.npz"), {}
    optimizer = kind.strategy().optimizer if name == "own" else None

    def keep(state: Any) -> None:
        found[int(state.generation)] = leaves(state)

    replay(
        base(kind.dtype), HERE / name / "run/ledger.bin", optimizer=optimizer, on_generation=keep, mesh="run"
    )  # fmt: skip
    for generation in MOMENTS:
        assert_same(found[generation], state_of(expected, generation), bits=exact(HERE / name))


@pytest.mark.parametrize("name", KINDS)
def test_settings_are_described_as_they_were(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """In the ledger; in the configuration all but functions, which were described by their code, and that is said."""
    kind, run = KINDS[name], HERE / name / "run"
    es = kind.strategy(**kind.changed)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    es.go_on(config["strategy"])
    strategy = as_json(describe(es, base(kind.dtype)))
    with caplog.at_level(logging.WARNING, "eggroll"):
        assert check_same(config, {**config, "strategy": strategy}, force=False) == []
    assert [x for x in strategy if f"the same {x} as far" in caplog.text] == ["shaping", "optimizer"] * (name == "own")
    was = recorded(run / "ledger.bin")[0][-1]
    now = settings_of(es, jax.random.key(7), digests(base(kind.dtype)), "two layers")
    plan = was.pop("plan")
    assert [leaf["path"] for leaf in plan] == list(digests(base(kind.dtype)))
    assert as_json({x: now[x] for x in now if x not in (*ENVIRONMENT, "plan")}) == was


@kinds("resumed")
@pytest.mark.usefixtures("mode")
def test_a_run_goes_on_to_its_end(name: str, tmp_path: Path) -> None:
    """From its checkpoint; what metrics and ledger have beyond that is cut, and made again."""
    kept, kind, bits = HERE / name / "run", KINDS[name], exact(HERE / name)
    expected = loaded(HERE / name / "expected.npz")
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    result, seen = kind.run(run, resume=True, force=bool(kind.changed))
    assert (result.ended, result.resumed) == ("finished", MIDDLE)
    assert_same(leaves(result.state), state_of(expected, LAST), bits=bits)
    carry = dict(enumerate(map(np.asarray, jax.tree.leaves(result.carry))))
    assert_same({str(i): x for i, x in carry.items()}, within(expected, f"{LAST}/carry/"), bits=bits)
    assert sorted(seen) == list(range(MIDDLE + 1, LAST + 1))
    for generation, metrics in seen.items():
        assert_same(metrics, metrics_of(expected, generation), bits=bits)
    assert recorded(run / "ledger.bin")[0] == recorded(kept / "ledger.bin")[0]
    if bits:
        assert untimed(run) == untimed(kept)
    configs = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (run, kept)]
    assert configs[0]["strategy"] == configs[1]["strategy"] and configs[0].get("changes") == configs[1].get("changes")


@pytest.mark.parametrize("name", READ)
def test_a_checkpoint_is_read(name: str, tmp_path: Path) -> None:
    """With nothing left to do, so that no step is compiled."""
    run = tmp_path / "run"
    shutil.copytree(HERE / name / "run", run)
    result, _ = KINDS[name].run(run, MIDDLE, resume=True)
    assert (result.ended, result.resumed) == ("finished", MIDDLE)
    assert_same(leaves(result.state), state_of(loaded(HERE / name / "expected.npz"), MIDDLE), bits=True)


@unoptimized
@pytest.mark.parametrize("there", ["train"], indirect=True)
@pytest.mark.usefixtures("mode")
def test_a_training_is_replayed_from_its_folder(there: Path) -> None:
    assert call("replay", "run", "run", "--out", "last.npz") == 0
    last, trained = loaded(Path("last.npz")), loaded(Path("run/parameters.npz"))
    assert len(last) == 8
    assert_same(last, {name: trained[name] for name in last}, bits=exact(there))
    assert call("replay", "run/initial.npz", "run/ledger.bin", "--out", "first.npz", "--generation", "0") == 0
    assert_same(loaded(Path("first.npz")), loaded(Path("run/initial.npz")), bits=True)


@unoptimized
@pytest.mark.parametrize("there", ["finetune"], indirect=True)
@pytest.mark.parametrize("method", quickest(METHODS, "full-rank"))
@pytest.mark.usefixtures("mode")
def test_a_fine_tuning_is_replayed_from_a_model(method: str, there: Path) -> None:
    """Which one, its configuration says."""
    assert call("replay", "base" if method == "eggroll" else method, method, "--out", "new/model") == 0
    assert_same(load_file(Path("new") / WEIGHTS), load_file(Path(method) / WEIGHTS), bits=exact(there))


@pytest.mark.slow
@unoptimized
@pytest.mark.parametrize("there", ["finetune"], indirect=True)
@pytest.mark.usefixtures("mode")
def test_the_middle_of_a_fine_tuning_is_that_of_its_checkpoint(there: Path) -> None:
    assert call("replay", "base", "full-rank", "--out", "middle.npz", "--generation", str(MIDDLE)) == 0
    saved = loaded(Path("full-rank/checkpoints", str(MIDDLE), "arrays.npz"))
    assert_same(loaded(Path("middle.npz")), within(saved, "state/params/"), bits=exact(there))


@pytest.mark.slow
@unoptimized
@pytest.mark.parametrize("there", ["train"], indirect=True)
@pytest.mark.usefixtures("mode")
def test_a_training_goes_on_to_its_end(there: Path) -> None:
    before, metrics = loaded(Path("run/parameters.npz")), untimed(Path("run"))
    assert call(*TRAIN, "--resume") == 0
    assert_same(loaded(Path("run/parameters.npz")), before, bits=exact(there))
    if exact(there):
        assert untimed(Path("run")) == metrics


@pytest.mark.slow
@unoptimized
@pytest.mark.parametrize("there", ["finetune"], indirect=True)
@pytest.mark.usefixtures("mode")
def test_a_fine_tuning_goes_on_to_its_end(there: Path) -> None:
    """Of `full-rank` a replay reads all that is kept, and its steps are those of the kinds above."""
    before, metrics = load_file(Path("eggroll") / WEIGHTS), untimed(Path("eggroll"))
    assert call(*finetune("eggroll"), "--resume") == 0
    if exact(there):  # elsewhere a rounding may choose another token, and so other answers
        assert_same(load_file(Path("eggroll") / WEIGHTS), before, bits=True)
        for found, kept in zip(untimed(Path("eggroll")), metrics, strict=True):  # which had fewer names
            assert {name: found[name] for name in kept} == kept
