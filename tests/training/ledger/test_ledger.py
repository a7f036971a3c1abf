"""A ledger is read to its last whole record; whatever was altered is refused, never read as other numbers."""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.training.errors import RunError
from eggroll.training.ledger.format import GENERATION, MAGIC, SETTINGS, first_digest, generation_bytes, pack
from eggroll.training.ledger.reader import Generation, LedgerError, Reader, Settings, summarize
from tests.training.ledger_runs import X, Y, boundaries, run

pytestmark = pytest.mark.optimised  # bits, as users get them


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "ledger.bin"
    run(path, 5)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "ledger.bin"
    run(path, 5, base_name="other")
    return path


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    """The same settings and generations, other data: only the chain tells its records from the ledger's."""
    path = tmp_path_factory.mktemp("sibling") / "ledger.bin"
    run(path, 5, args=(X, 2 * Y))
    return path


def payloads(path):
    """What the reader hands out, as bytes; and how many bytes it left out."""
    reader = Reader(path)
    found = [entry.payload if isinstance(entry, Settings) else entry.pack() for entry in reader]
    return found, reader.cut


def rewritten(tmp_path, data):
    path = tmp_path / "rewritten.bin"
    path.write_bytes(data)
    return path


def test_the_bytes_are_those_of_the_documentation(ledger):
    data = ledger.read_bytes()
    ends = boundaries(data)
    assert len(ends) == 1 + 1 + 5, "magic, settings, five generations"
    assert ends[-1] == len(data)
    sizes = np.diff(ends)
    assert set(sizes[1:]) == {88 + 8 * 8} == {generation_bytes(8)}
    at = ends[3]  # generation 2, taken apart by hand
    assert data[at : at + 4] == b"GENE"
    payload = data[at + 16 : ends[4] - 16]
    assert int.from_bytes(payload[:8], "little") == 2
    assert payload[24:28] == b"ffff"
    assert int.from_bytes(payload[28:32], "little") == 8
    assert np.frombuffer(payload[32:40], "<f8")[0] == np.float32(0.05)
    entry = [e for e in Reader(ledger) if isinstance(e, Generation)][2]
    assert (np.frombuffer(payload[56:88], "<f4") == entry.fitness).all()
    assert (np.frombuffer(payload[88:], "<f4") == entry.weights).all()
    before = hashlib.blake2b(MAGIC, digest_size=16).digest()
    for start, end in itertools.pairwise(ends):
        head, body = data[start : start + 8], data[start + 16 : end - 16]
        assert data[start + 8 : start + 16] == hashlib.blake2b(before + head, digest_size=8).digest()
        before = hashlib.blake2b(before + head + body, digest_size=16).digest()
        assert data[end - 16 : end] == before
    settings = json.loads(data[ends[0] + 16 : ends[1] - 16])
    assert settings["population"] == 8 and settings["sigma"] == 0.05 and settings["shaping"] == "zscore"


def test_cut_at_every_byte_leaves_the_whole_records_before(ledger, tmp_path):
    data = ledger.read_bytes()
    ends = boundaries(data)
    whole, _ = payloads(ledger)
    for size in range(len(data) + 1):
        found, cut = payloads(rewritten(tmp_path, data[:size]))
        kept = sum(end <= size for end in ends) - 1  # the magic line is no record
        assert found == whole[: max(kept, 0)], size
        assert cut == size - (ends[kept] if kept >= 0 else 0), size


@given(data=st.data())
def test_a_flipped_bit_is_refused(ledger, tmp_path_factory, data):
    original = ledger.read_bytes()
    for _ in range(20):
        bit = data.draw(st.integers(0, 8 * len(original) - 1))
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LedgerError):
            payloads(rewritten(tmp_path_factory.getbasetemp(), bytes(flipped)))


def test_a_flipped_bit_in_every_head_is_refused(ledger, tmp_path):
    """A length that got larger must not be taken for a record cut short, above all not in the last record."""
    original = ledger.read_bytes()
    for end in boundaries(original)[:-1]:
        for bit in range(8 * end, 8 * (end + 16)):
            flipped = bytearray(original)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(LedgerError, match="altered"):
                payloads(rewritten(tmp_path, bytes(flipped)))


@given(data=st.data())
def test_a_flipped_bit_and_a_cut_never_give_other_numbers(ledger, tmp_path_factory, data):
    original = ledger.read_bytes()
    whole, _ = payloads(ledger)
    for _ in range(20):
        bit = data.draw(st.integers(0, 8 * len(original) - 1))
        size = data.draw(st.integers(bit // 8 + 1, len(original)))
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found, cut = payloads(rewritten(tmp_path_factory.getbasetemp(), bytes(flipped[:size])))
        except LedgerError:
            continue
        assert found == whole[: len(found)]
        assert cut > 0 and size - cut <= bit // 8, "only a flip in the tail that is left out anyway goes unseen"


def records(path):
    data = path.read_bytes()
    ends = boundaries(data)
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_removed_record_is_refused(ledger, tmp_path, at):
    kept = records(ledger)
    del kept[at]
    with pytest.raises(LedgerError, match=rf"record {at},.* at byte \d+"):
        payloads(rewritten(tmp_path, MAGIC + b"".join(kept)))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (2, 3), (1, 5)])
def test_records_in_another_order_are_refused(ledger, tmp_path, a, b):
    moved = records(ledger)
    moved[a], moved[b] = moved[b], moved[a]
    with pytest.raises(LedgerError, match="altered"):
        payloads(rewritten(tmp_path, MAGIC + b"".join(moved)))


def test_a_repeated_record_is_refused(ledger, tmp_path):
    each = records(ledger)
    with pytest.raises(LedgerError, match="record 6"):
        payloads(rewritten(tmp_path, MAGIC + b"".join([*each, each[-1]])))


@pytest.mark.parametrize("at", [2, 4])
@pytest.mark.parametrize("whose", ["other", "sibling"])
def test_a_record_of_another_ledger_is_refused(ledger, whose, request, tmp_path, at):
    mine, theirs = records(ledger), records(request.getfixturevalue(whose))
    assert (mine[0] == theirs[0]) == (whose == "sibling")
    with pytest.raises(LedgerError, match="altered"):
        payloads(rewritten(tmp_path, MAGIC + b"".join([*mine[:at], theirs[at], *mine[at + 1 :]])))
    with pytest.raises(LedgerError, match="altered"):
        payloads(rewritten(tmp_path, MAGIC + b"".join([*mine[: at + 1], *theirs[at + 1 :]])))


def test_the_error_names_file_record_generation_and_byte(ledger, tmp_path):
    data = bytearray(ledger.read_bytes())
    at = boundaries(bytes(data))[4]  # record 4, generation 3
    data[at + 40] ^= 1
    with pytest.raises(RunError) as caught:
        payloads(rewritten(tmp_path, bytes(data)))
    for part in ("rewritten.bin", "record 4", "generation 3", f"byte {at}", "up to 3"):
        assert part in str(caught.value), part


@pytest.mark.parametrize("content", [b"\x80\x04\x95", b"PK\x03\x04", b"eggroll ledger 2\n", b"eggrole"])
def test_what_is_no_ledger_is_refused(tmp_path, content):
    with pytest.raises(LedgerError, match=r"no ledger|another version"):
        payloads(rewritten(tmp_path, content + bytes(40)))


def test_a_tail_of_zeros_is_one_that_was_cut(ledger, tmp_path):
    data = ledger.read_bytes()
    whole, _ = payloads(ledger)
    assert payloads(rewritten(tmp_path, data + bytes(5000))) == (whole, 5000)
    with pytest.raises(LedgerError):
        payloads(rewritten(tmp_path, data + bytes(4000) + b"x" + bytes(40)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match="nowhere"):
        payloads(tmp_path / "nowhere.bin")


def chained(*entries):
    data, digest = MAGIC, first_digest()
    for kind, payload in entries:
        record, digest = pack(kind, payload, digest)
        data += record
    return data


def test_sound_checksums_do_not_excuse_what_makes_no_sense(ledger, tmp_path):
    settings, *generations = (e for e in Reader(ledger))
    first, second = ((GENERATION, g.pack()) for g in generations[:2])
    start = (SETTINGS, settings.payload)
    for entries in (
        [first],  # no settings
        [start, second],  # a generation is missing
        [start, first, first],
        [start, (SETTINGS, b'{"population":9}'), first],  # other settings than those before it
        [start, (b"WHAT", b"")],
        [(SETTINGS, b"[1]")],
        [(SETTINGS, b"\xff")],
        [start, (GENERATION, b"short")],
        [start, (GENERATION, first[1] + b"more")],
        [start, (GENERATION, first[1][:24] + b"qqqq" + first[1][28:])],
    ):
        with pytest.raises(LedgerError, match="altered"):
            payloads(rewritten(tmp_path, chained(*entries)))
    assert len(payloads(rewritten(tmp_path, chained(start, first, second)))[0]) == 3


@given(
    population=st.integers(1, 20),
    wide=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_numbers_survive_to_the_last_bit(population, wide, seed):
    rng = np.random.default_rng(seed)
    sigma, loss, fitness, weights = (np.float64 if w else np.float32 for w in wide)
    values = rng.normal(size=population) * 10.0 ** rng.integers(-40, 38, population)
    values[rng.random(population) < 0.2] = np.nan
    with np.errstate(over="ignore", under="ignore"):
        entry = Generation(
            generation=int(rng.integers(2**63)),
            settings=rng.bytes(8),
            key=rng.integers(2**32, size=2, dtype=np.uint32),
            sigma=np.array(rng.random(), sigma),
            loss=np.array(rng.normal(), loss),
            gradient_norm=np.array(rng.random(), np.float32),
            update_norm=np.array(rng.random(), np.float32),
            fitness=values.astype(fitness),
            weights=values[::-1].astype(weights),
        )
    again = Generation.unpack(entry.pack())
    for name in vars(entry):
        got, want = np.asarray(getattr(again, name)), np.asarray(getattr(entry, name))
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes(), name


def test_summary(ledger, tmp_path):
    data = ledger.read_bytes()
    found = summarize(rewritten(tmp_path, data[:-3]))
    assert (found.records, found.generations, found.settings) == (5, 4, 1)
    assert (found.bytes, found.cut) == (boundaries(data)[-2], 88 + 64 - 3)
    assert found.digest == data[found.bytes - 16 : found.bytes].hex()
    assert found.content["base"]["name"] is None
    assert summarize(rewritten(tmp_path, b"")).records == 0
