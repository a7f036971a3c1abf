"""Ledgers of sound checksums that no run wrote: refused by what is odd in them."""

from __future__ import annotations

import hashlib
import tracemalloc

import pytest

from eggroll.training.errors import RunError
from eggroll.training.ledger.format import GENERATION, pack
from eggroll.training.ledger.reader import summarize
from eggroll.training.ledger.rebuilding import replay
from eggroll.training.ledger.replay_files import verify
from tests.training.ledger.test_replay_refused import changed
from tests.training.ledger_runs import mlp, run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder / "ledger.bin", 2, base_name="small")


FORGED = {
    "base": ({}, None, [], {"name": None, "digest": 1, "parameters": []}, {"digest": "00", "parameters": ["00"] * 4}),
    "plan": ("w", [3], [{}], {"path": "w"}),
    "population": (-8, 0, 8.0, "8", None),
    "key": ([], [1], ["a", "b"], None),
    "versions": ([], {"jax": 1}, None),
    "x64": (0, None),
}


@pytest.mark.parametrize("name", FORGED)
def test_settings_of_other_kinds_are_refused_where_they_are_read(made, tmp_path, name):
    path = tmp_path / "ledger.bin"
    for value in FORGED[name]:
        path.write_bytes(changed(made[0] / "ledger.bin", lambda c, value=value: c.update({name: value})))
        for read in (verify, lambda path: replay(mlp(), path)):
            with pytest.raises(RunError, match=f"record 0.*settings that no run writes: '{name}' is "):
                read(path)


ODD = {
    "population": lambda c: c.update(population=10**12),
    "rank": lambda c: c["plan"][1].update(rank=10**12),
    "axes": lambda c: c["plan"][1].update(left_axes=[7]),
    "scale": lambda c: c["plan"][0].update(sigma_scale=-1),
    "shape": lambda c: c["plan"][0].update(shape=[10**9, 10**9]),
    "groups": lambda c: c.update(groups=-3),
    "reuse": lambda c: c.update(noise_reuse="x"),
    "mesh": lambda c: c.update(mesh={"axes": "x"}),
    "sigma": lambda c: c.update(sigma={}),
}


@pytest.mark.parametrize("name", ODD)
def test_settings_of_other_sizes_are_refused_too(made, tmp_path, name):
    path = tmp_path / "ledger.bin"
    path.write_bytes(changed(made[0] / "ledger.bin", ODD[name]))
    with pytest.raises(RunError):
        replay(mlp(), path)


def test_a_length_that_the_file_does_not_have_is_a_cut(made, tmp_path):
    data = (made[0] / "ledger.bin").read_bytes()
    whole = summarize(made[0] / "ledger.bin")
    head = pack(GENERATION, b"", bytes.fromhex(whole.digest))[0][:4] + b"\xff\xff\xff\xff"
    head += hashlib.blake2b(bytes.fromhex(whole.digest) + head, digest_size=8).digest()
    (tmp_path / "ledger.bin").write_bytes(data + head + bytes(99))
    tracemalloc.start()
    assert verify(tmp_path).cut == len(head) + 99
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
