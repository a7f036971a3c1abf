"""The journal: new, resumed, changed, and on disks that do not take what they are given."""

from __future__ import annotations

import errno
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.training.errors import RunError
from eggroll.training.ledger.format import MAGIC
from eggroll.training.ledger.journal import Journal
from eggroll.training.ledger.reader import Generation, Reader, Settings, summarize
from eggroll.training.optimizers import named
from tests.training.ledger_runs import KEY, X, Y, boundaries, mlp, mlp_fitness, strategy

pytestmark = pytest.mark.optimised  # bits, as users get them


class Live:
    """A run that was made once; its journals are written again and again."""

    def __init__(self, generations: int = 6, **options) -> None:
        self.es, self.base = strategy(**options), mlp()
        state, self.metrics = self.es.init(self.base, KEY), []
        for _ in range(generations):
            state, metrics = self.es.step(state, mlp_fitness, X, Y)
            self.metrics.append(metrics)

    def journal(self, path, **options) -> Journal:
        return Journal(path, self.es, self.base, key=KEY, **options)

    def write(self, path, first: int = 0, last: int | None = None, **options) -> bytes:
        with self.journal(path, after=first, **options) as journal:
            for metrics in self.metrics[first:last]:
                journal.append(metrics)
        return path.read_bytes()


@pytest.fixture(scope="module")
def live():
    return Live()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.bin"


def test_every_generation_reaches_the_file_at_once(live, path):
    with live.journal(path) as journal:
        assert path.read_bytes() == MAGIC
        for i, metrics in enumerate(live.metrics):
            journal.append(metrics)
            found = summarize(path)
            assert (found.generations, found.cut) == (i + 1, 0)
            assert journal.size == path.stat().st_size == found.bytes
        journal.sync()
    entries = [e for e in Reader(path) if isinstance(e, Generation)]
    for entry, metrics in zip(entries, live.metrics, strict=True):
        for name in ("fitness", "weights", "sigma", "gradient_norm", "update_norm"):
            assert np.asarray(getattr(entry, name)).tobytes() == np.asarray(metrics[name]).tobytes()
        assert entry.loss == -np.asarray(metrics["fitness_mean"])
        assert (entry.key == jax.random.key_data(KEY)).all()


def test_a_journal_that_is_closed_says_so(live, path):
    journal = live.journal(path)
    journal.close()
    journal.close()
    with pytest.raises(RunError, match="closed"):
        journal.append(live.metrics[0])


def test_a_new_run_does_not_replace_a_ledger(live, path):
    written = live.write(path)
    with pytest.raises(RunError, match="overwrite"):
        live.journal(path)
    assert path.read_bytes() == written
    assert live.write(path, overwrite=True) == written
    path.write_bytes(MAGIC)  # a run killed before its first generation
    assert live.write(path) == written


@pytest.mark.parametrize("after", [1, 3, 6])
def test_resumed_from_any_state_of_the_file_it_is_the_file_of_one_run(live, path, after):
    """Killed anywhere behind the checkpoint, even in the middle of a record, with whatever garbage behind it."""
    whole = live.write(path)
    end = boundaries(whole)[after + 1]
    for data in (whole, whole[:end], whole[: end + 40], whole[:end] + b"garbage" * 30, whole[:end] + bytes(4096)):
        path.write_bytes(data)
        assert live.write(path, after) == whole


def test_resumed_where_nothing_can_be_resumed_it_says_why_and_touches_nothing(live, path):
    whole = live.write(path)
    ends = boundaries(whole)
    flipped = bytearray(whole)
    flipped[ends[2] + 30] ^= 1
    for data, why in (
        (whole[: ends[4] + 10], "ends before generation 5: it has 3 generations and 10 bytes"),
        (MAGIC, "ends before generation 5: it has 0"),
        (b"", "ends before generation 5"),
        (bytes(flipped), "generation 1.*altered"),
        (b"something else entirely", "no ledger"),
    ):
        path.write_bytes(data)
        with pytest.raises(RunError, match=why) if "altered" not in why else pytest.raises(RunError, match="altered"):
            live.journal(path, after=5)
        assert path.read_bytes() == data
    path.unlink()
    with pytest.raises(RunError, match="No such file"):
        live.journal(path, after=5)


def test_generations_come_once_and_in_order(live, path):
    with live.journal(path) as journal:
        journal.append(live.metrics[0])
        for wrong in (0, 2):
            with pytest.raises(RunError, match=rf"generation {wrong};.* generation 1"):
                journal.append(live.metrics[wrong])
        with pytest.raises(RunError, match="without weights"):
            journal.append({name: value for name, value in live.metrics[1].items() if name != "weights"})
        journal.append(live.metrics[1])
    assert summarize(path).generations == 2


def test_metrics_of_an_es_that_made_no_generation(live, path):
    with Journal(path, strategy(), live.base, key=KEY) as journal, pytest.raises(RunError, match="another ES"):
        journal.append(live.metrics[0])


@pytest.mark.parametrize(
    ("options", "named_so"),
    [
        ({"population": 10}, "population: 8 → 10"),
        ({"sigma": 0.06}, "sigma: 0.05 → 0.06"),
        ({"noise_reuse": 2}, "noise_reuse: 1 → 2"),
        ({"distribution": "normal"}, 'distribution: "rademacher" → "normal"'),
        ({"shaping": "sign"}, 'shaping: "zscore" → "sign"'),
        (
            {"optimizer": named("adam", learning_rate=0.02, b2=0.99)},
            "settings: optimizer.learning_rate: 0.01 → 0.02. R",
        ),
    ],
)
def test_other_settings_are_named_and_refused_unless_they_are_meant(live, path, options, named_so):
    written = live.write(path)
    es = strategy(**options)
    with pytest.raises(RunError, match=named_so):
        Journal(path, es, live.base, key=KEY, after=4)
    assert path.read_bytes() == written
    es.plan = live.es.plan  # as after its first generation
    with Journal(path, es, live.base, key=KEY, after=4, changed=True) as journal:
        if "population" not in options:
            journal.append(live.metrics[4])
    entries = list(Reader(path))
    assert [isinstance(e, Settings) for e in entries].count(True) == (1 if "population" in options else 2)


def test_another_plan_shows_at_the_first_generation(live, path):
    live.write(path)
    with Journal(path, strategy(rules=[("layers/0/bias", "frozen")]), live.base, key=KEY, after=4) as journal:
        journal._es.plan = strategy(rules=[("layers/0/bias", "frozen")]).plan_for(live.base)
        with pytest.raises(RunError, match="the plan of layers/0/bias"):
            journal.append(live.metrics[4])
    assert summarize(path).generations == 4


def test_another_key_or_base_is_refused(live, path):
    live.write(path)
    with pytest.raises(RunError, match="key"):
        Journal(path, live.es, live.base, key=jax.random.key(8), after=2)
    other = mlp()
    other["layers"][1]["bias"] = jnp.nextafter(other["layers"][1]["bias"], jnp.float32(9))
    for changed in (False, True):
        with pytest.raises(RunError, match="layers/1/bias"):
            Journal(path, live.es, other, key=KEY, after=2, changed=changed)


def test_another_machine_is_noted_and_no_difference(live, path, monkeypatch):
    live.write(path)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    live.es.plan = strategy().plan_for(live.base, mlp_fitness, _rows())  # an equal plan, so that settings are read anew
    live.write(path, 4)
    monkeypatch.undo()
    found = [e.content["platform"] for e in Reader(path) if isinstance(e, Settings)]
    assert found == [jax.default_backend(), "gpu"]


def _rows():
    from eggroll.strategy.evaluate.tracing import make_rows

    return make_rows((X, Y), None, 8, 1)


class Full:
    """A file on a disk with room for so many bytes more."""

    def __init__(self, file, room: int) -> None:
        self._file, self.room = file, room

    def write(self, data):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = self._file.write(bytes(data)[: self.room])
        self.room -= part
        return part

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 1, 50, 151])
def test_a_full_disk_costs_the_generation_only(live, path, room):
    whole = live.write(path)
    end = boundaries(whole)[4]
    path.unlink()
    with live.journal(path) as journal:
        for metrics in live.metrics[:3]:
            journal.append(metrics)
        journal._file = Full(journal._file, room)
        with pytest.raises(RunError, match=r"No space left.* 3 generations"):
            journal.append(live.metrics[3])
        assert path.read_bytes() == whole[:end] and journal.size == end
        journal._file.room = 10**6  # somebody made room
        for metrics in live.metrics[3:]:
            journal.append(metrics)
    assert path.read_bytes() == whole


def test_a_full_disk_that_cannot_even_be_cut_leaves_whole_records_readable(live, path, monkeypatch):
    with live.journal(path) as journal:
        for metrics in live.metrics[:3]:
            journal.append(metrics)
        full = Full(journal._file, 60)
        monkeypatch.setattr(full, "truncate", lambda size: full.write(b"x"), raising=False)
        journal._file = full
        with pytest.raises(RunError, match="No space left"):
            journal.append(live.metrics[3])
    found = summarize(path)
    assert (found.generations, found.cut) == (3, 60)


def test_the_operating_system_refuses_more_bytes(live, path):
    """The same without a stand-in: a limit on the size of files."""
    whole = live.write(path)
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with live.journal(path) as journal:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (boundaries(whole)[3] + 60, hard))
            for metrics in live.metrics[:2]:
                journal.append(metrics)
            with pytest.raises(RunError, match="cannot write"):
                journal.append(live.metrics[2])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert summarize(path).generations == 2
    assert live.write(path, 2) == whole


def test_a_folder_that_does_not_exist_is_named(live, tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        live.journal(tmp_path / "nowhere" / "ledger.bin")
