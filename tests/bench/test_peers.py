import importlib.metadata
import json
import sys

import jax
import numpy as np
import pytest

from bench import peers
from bench.peer_adapters import ADAPTERS, Candidate, LeftOut, Missing, Work, adapter, checkout, memory
from bench.peers import Options, Outcome
from bench.tools.timing import Timing

PATHS = ("HYPERSCALEES_PATH", "SHARDES_PATH", "EGGROLL_ES_PATH", "EGGROLL_ES_PYTHON")
OTHERS = [name for name in ADAPTERS if not name.startswith("ours")]
SMALL = Work("digits", 8, rows=4)
SIZES = "--width 16 --layer-population 8 --population 8 --rows 4 --rounds 2 --memory-populations"


@pytest.fixture(autouse=True)
def no_peers(monkeypatch):
    """Whatever is installed here, the peers are not."""
    version = importlib.metadata.version

    def ours_alone(name):
        if name in ("evosax", "torch", "torcheggroll", "shardes"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", ours_alone)
    for path in PATHS:
        monkeypatch.delenv(path, raising=False)


@pytest.mark.slow
def test_missing_peers_are_rows_that_say_how_to_get_them(capsys, tmp_path):
    out = tmp_path / "kept.json"
    peers.main(["--out", str(out), *SIZES.split()])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["work"] for row in found["rows"]] == ["layer"] * len(ADAPTERS) + ["digits"] * len(ADAPTERS)
    for name, row in zip(ADAPTERS * 2, found["rows"], strict=True):
        assert row["peer"] == adapter(name).NAME
        if name in OTHERS:
            assert row["note"] == f"not installed: {adapter(name).GET}"
            assert row["version"] is None and row["step_ms"] is None and row["step_per_inference"] is None
        else:
            assert row["note"] is None
            assert 0 < row["low"] <= row["step_per_inference"] <= row["high"]
            assert row["times_ours"] == 1.0 or name != "ours"
    assert len(found["summary"]) == 4
    assert json.loads(out.read_text()) == found


def test_the_sizes_of_a_work():
    digits = Work("digits", 1024)
    assert digits.parameters == 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert digits.dense_bytes == 4 * 1024 * digits.parameters
    assert Work("layer", 4096).dense_bytes == 2**32  # 4096 weights of 512 × 512


@pytest.mark.parametrize("work", [Work("layer", 6, width=5), Work("digits", 6, rows=3)], ids=lambda work: work.name)
def test_inference_evaluates_every_member_on_its_rows(work):
    from bench.peer_adapters import ours

    task = ours.problem(work)
    outputs = np.asarray(ours.inference(task)())
    copies = np.asarray(task.copies())
    assert len(copies) == len(outputs) == 6
    if work.name == "layer":
        np.testing.assert_allclose(outputs, copies @ np.asarray(task.params["kernel"]), rtol=1e-5, atol=1e-6)
    else:
        assert outputs.shape == (6, 3, 10)
        np.testing.assert_allclose(outputs[4], task.model(task.params, task.rows[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_step_goes_on_from_the_last_one():
    candidate = adapter("ours").prepare(SMALL)
    (first, _), (second, metrics) = candidate.step(), candidate.step()
    assert metrics["generation"] == 1
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params, second.params)
    assert all(jax.tree.leaves(moved))


def test_a_peer_that_fails_is_a_note_and_ours_is_an_error(monkeypatch):
    def broken(work):
        raise RuntimeError("RESOURCE_EXHAUSTED\nand more")

    def unable(work):
        raise LeftOut("no rows of its own")

    outcome = Outcome("evosax_open_es", SMALL)
    outcome.notes.clear()
    for prepare in (broken, unable):
        monkeypatch.setattr(outcome.module, "prepare", prepare)
        assert outcome.prepare() is None
    assert outcome.notes == ["failed: RuntimeError: RESOURCE_EXHAUSTED", "left out: no rows of its own"]
    ours = Outcome("ours", SMALL)
    monkeypatch.setattr(ours.module, "prepare", broken)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        ours.prepare()


def test_what_would_not_fit_is_not_tried(monkeypatch):
    work = Work("layer", 4096)
    outcome = Outcome("evosax_open_es", work)
    assert not outcome.fits(work, limit=1e15)  # missing
    outcome.version, outcome.notes = "1", []
    assert outcome.fits(work, limit=13e9) and not outcome.notes
    assert not outcome.fits(work, limit=12e9)
    assert outcome.notes == ["population 4096: its dense members need about 12.9 GB, 12.0 GB allowed"]


def test_candidates_share_the_inference_of_their_framework(monkeypatch):
    calls = []

    def prepared(name):
        return Candidate(lambda: calls.append(f"{name} step"), lambda: calls.append(f"{name} inference"))

    outcomes = [Outcome(name, SMALL) for name in ("ours", "evosax_open_es", "torcheggroll_es", "eggroll_es")]
    for outcome in outcomes:
        outcome.version = "1"
        monkeypatch.setattr(outcome.module, "prepare", lambda work, name=outcome.name: prepared(name), raising=False)
    times = {"jax inference": 2.0, "torch inference": 4.0, "ours": 1.0, "evosax_open_es": 6.0, "torcheggroll_es": 8.0}

    def timed(candidates, *, rounds):
        assert set(candidates) == set(times)
        return {name: Timing(name, (times[name],) * rounds) for name in candidates}

    monkeypatch.setattr(peers, "interleave", timed)
    peers.measure_together(outcomes, Options(rounds=3))
    assert calls == ["ours step", "evosax_open_es step", "torcheggroll_es step"]
    rows = {outcome.name: outcome.row(outcomes[0].step, ()) for outcome in outcomes}
    assert {name: row["step_per_inference"] for name, row in rows.items()} == {
        **{"ours": 0.5, "evosax_open_es": 3.0, "torcheggroll_es": 2.0, "eggroll_es": None},
    }
    assert rows["evosax_open_es"]["times_ours"] == 6.0 and rows["torcheggroll_es"]["times_ours"] == 8.0


def test_a_checkout_is_found_at_its_root_or_in_src(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for path in (None, "", str(tmp_path)):
        with pytest.raises(Missing, match="get it"):
            checkout(path, "thing_of_a_peer", "get it")
    (tmp_path / "src" / "thing_of_a_peer").mkdir(parents=True)
    assert checkout(str(tmp_path), "thing_of_a_peer", "get it") == tmp_path / "src" / "thing_of_a_peer"
    assert sys.path[-1] == str(tmp_path / "src")


def test_eggroll_es_takes_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    module = adapter("eggroll_es")
    (tmp_path / "eggroll").mkdir()
    information = tmp_path / "eggroll_es-9.8.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: eggroll-es\nVersion: 9.8\n")
    monkeypatch.setenv("EGGROLL_ES_PATH", str(tmp_path))
    monkeypatch.setenv("EGGROLL_ES_PYTHON", "some-python")
    assert module.version() == "9.8"
    assert module.command()[0] == "some-python"
    monkeypatch.setenv("EGGROLL_ES_PATH", str(tmp_path / "nothing"))
    with pytest.raises(Missing):
        module.version()


def test_a_process_answers_or_is_ended():
    def python(code):
        return [sys.executable, "-c", code]

    echo = "import json,sys; r=json.load(sys.stdin); print('chatter'); print(json.dumps({'twice': 2*r['n']}))"
    assert memory.ask(python(echo), {"n": 21}, limit=1e12) == {"twice": 42}
    with pytest.raises(memory.Stopped, match="ValueError: no such thing"):
        memory.ask(python("raise ValueError('no such thing')"), {}, limit=1e12)
    with pytest.raises(memory.Stopped, match=r"not done after 0 s"):
        memory.ask(python("import time; time.sleep(60)"), {}, limit=1e12, seconds=0.2)


@pytest.mark.skipif(not memory.available_bytes(), reason="needs /proc")
def test_a_process_that_takes_too_much_memory_is_ended():
    hungry = "import time; kept = bytearray(b'x' * 300_000_000); time.sleep(60)"
    with pytest.raises(memory.Stopped, match=r"took above 0\.2 GB and was ended"):
        memory.ask([sys.executable, "-c", hungry], {}, limit=2e8)


@pytest.mark.skipif(not memory.available_bytes(), reason="needs /proc")
def test_the_peak_is_of_the_process_itself_and_not_of_what_started_it():
    code = "from bench.peer_adapters.memory import peak_bytes; {}; print('{{\"peak\":', peak_bytes(), '}}')"
    large = bytearray(b"x" * 200_000_000)  # this process's
    small = memory.ask([sys.executable, "-c", code.format("0")], {}, limit=1e12)["peak"]
    del large
    gone = memory.ask([sys.executable, "-c", code.format("len(b'x' * 300_000_000)")], {}, limit=1e12)["peak"]
    assert small < 100e6
    assert gone > 300e6


@pytest.mark.slow
def test_memory_of_a_step_in_a_fresh_process():
    outcome = Outcome("ours", Work("digits", 64, rows=4))
    outcome.measure_memory(16, limit=1e12)
    assert not outcome.notes
    assert 50e6 < outcome.peaks[16] < 2e9
    assert outcome.row(None, (16, 32))["peak_MB_16"] == outcome.peaks[16] / 1e6
