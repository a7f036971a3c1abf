"""What lies in a folder and is no file of ours: refused at once, in little memory, and never written through."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import read_arrays, save_arrays
from eggroll.training.folder.disk import own_folder, own_handle, parse_json, read_json, remove
from eggroll.training.folder.files import LOCK, FolderLock, write_text
from eggroll.training.folder.layout import clear


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"[1]", "no JSON object, but a list"),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 100 deep"),
        (b'{"a": 1e999999}', "larger than a float"),
        (b'{"a": -1e999999}', "larger than a float"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
        (b'{"a": "\xff"}', "can't decode"),
        ('{"a": 1}'.encode("utf-16"), "can't decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
    ],
)
def test_json_of_another_kind_is_refused_by_what_it_has(text: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(RunError, match=f"(?s)cannot read '.*a.json'.*{why}.*Mend it"):
        read_json(tmp_path / "a.json", "Mend it.")


def test_json_that_is_wide_or_as_deep_as_ours_is_read() -> None:
    assert parse_json(b'{"a": [' + b"[1]," * 999 + b"[1]]}")["a"][-1] == [1]
    found = parse_json(b"[" * 99 + b"1.5" + b"]" * 99)
    for _ in range(99):
        (found,) = found
    assert found == 1.5


def head(**described: object) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"fortran_order": False, "descr": "<f4", **described})  # type: ignore[arg-type]
    return stream.getvalue()


def packed(path: Path, *entries: tuple[str, bytes], zeros: int = 0) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, start in entries:
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(start)
                for _ in range(zeros):
                    entry.write(bytes(1 << 20))


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b""), "BadZipFile"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "not a zip"),
        (lambda path: path.mkdir(), "no regular file|directory"),
        (os.mkfifo, "no regular file"),
        (lambda path: packed(path, ("w.npy", head(shape=(64, 1 << 18))), zeros=64), r"shape \[64, 262144\], not \[3\]"),
        (lambda path: packed(path, ("w.npy", head(shape=(3,))), zeros=64), "67108864 bytes for the shape"),
        (lambda path: packed(path, ("w.npy", head(shape=(3,)) + bytes(8))), "8 bytes for the shape"),
        (lambda path: packed(path, ("w.npy", b"\x93NUMPY\2\0\0\0\0\x70" + b" " * 99)), "a head of version"),
        (lambda path: packed(path, ("w.npy", head(shape=(-1, -3)) + bytes(12))), "not .3."),
        (lambda path: packed(path, ("w.npy", OBJECTS.getvalue())), "object: numbers are required"),
        (lambda path: packed(path, ("w.npy", head(shape=(3,), descr=[("a", "<f4")]) + bytes(12))), "numbers are"),
        (lambda path: packed(path, ("../../w.npy", b"")), "no array's name"),
        (lambda path: packed(path, ("v.npy", head(shape=(3,)) + bytes(12))), "lacks, or has besides, v, w"),
    ],
)
def test_arrays_of_another_kind_are_refused_before_they_are_unpacked(
    make: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    make(tmp_path / "a.npz")
    tracemalloc.start()
    with pytest.raises(RunError, match=f"(?s)cannot read parameters from '.*a.npz' .*{why}"):
        read_arrays(tmp_path / "a.npz", {"w": (3,)})
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_arrays_of_unknown_shapes_are_no_larger_than_numbers_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eggroll.training.folder.arrays.SMALL", 16 << 20)
    packed(tmp_path / "a.npz", ("w.npy", head(shape=(32, 1 << 18))), zeros=32)
    with pytest.raises(RunError, match="bytes say that they unpack to 335545"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.ones((), ">i4"), np.zeros((0, 2)), np.ones(9000)])
def test_arrays_come_back_as_numpy_reads_them(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for one in (array, np.asfortranarray(array)):
        for save in (lambda one: save_arrays(path, {"w": one}), lambda one: np.savez_compressed(path, w=one)):
            save(one)
            found = read_arrays(path, {"w": one.shape})["w"]
            with np.load(path) as file:
                assert found.dtype == file["w"].dtype and found.tobytes("A") == file["w"].tobytes("A")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    run, victim, aside = tmp_path / "run", tmp_path / "victim", tmp_path / "aside"
    run.mkdir()
    aside.mkdir()
    victim.write_text("kept")
    for name in ("config.json", "config.json.partial", "metrics.jsonl", "ledger.bin"):
        (run / name).symlink_to(victim)
    (run / LOCK).symlink_to(victim)
    (run / "checkpoints").symlink_to(aside)
    write_text(run / "config.json", "{}")
    assert not (run / "config.json").is_symlink()
    with pytest.raises(OSError, match="is a symbolic link"):
        own_handle(run / "ledger.bin", os.O_RDWR)
    with pytest.raises(RunError, match=r"'run\.lock' is a symbolic link"), FolderLock(run):
        pass
    (run / LOCK).unlink()
    (run / LOCK).hardlink_to(victim)
    with pytest.raises(RunError, match="hard link"), FolderLock(run):
        pass
    with pytest.raises(RunError, match=r"checkpoints' is a symbolic link.*--out"):
        own_folder(run / "checkpoints")
    (aside / "other").write_text("kept")
    clear(run)  # links go, and what they lead to stays
    remove(tmp_path / "nothing")
    assert sorted(path.name for path in run.iterdir()) == ["config.json.partial", LOCK]
    assert victim.read_text() == "kept" and (aside / "other").read_text() == "kept"


def test_a_link_that_comes_between_the_look_and_the_opening_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aside").write_text("kept")
    (tmp_path / "ledger.bin").symlink_to(tmp_path / "aside")
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)  # not yet
    with pytest.raises(OSError, match="ledger"):
        own_handle(tmp_path / "ledger.bin", os.O_WRONLY | os.O_TRUNC)
    assert (tmp_path / "aside").read_text() == "kept"


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with FolderLock(tmp_path / "run"):
        write_text(tmp_path / "run" / "config.json", "{}")
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["config.json", LOCK]
