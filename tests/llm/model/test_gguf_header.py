"""Headers of GGUF files, written byte by byte: what lies is refused within the bounds of the file."""

from __future__ import annotations

import struct

import pytest

from eggroll import llm
from eggroll.llm.model.gguf_header import read_header
from eggroll.training.errors import RunError


def entry(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name.encode() + sizes + struct.pack("<IQ", kind, offset)


def gguf(*entries: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, data: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join((*entries, *tensors))
    return head + b"\0" * (-len(head) % 32) + data


LONG = struct.pack("<IQ", 4, 2**40)
ONE = tensor("a", (8,), 0, 0)
HEADERS = {
    "empty": (b"", "empty|header goes on"),
    "no entries": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "its header goes on"),
    "no tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "its header goes on"),
    "version": (gguf(version=1), "of version 1"),
    "other end": (gguf(version=3 << 24), "of version"),
    "text": (gguf(entry("a", 8, struct.pack("<Q", 2**63))), "its header goes on"),
    "no UTF-8": (gguf(entry("a", 8, struct.pack("<Q", 1) + b"\xff")), "utf-8"),
    "numbers": (gguf(entry("a", 9, LONG)), "its header goes on"),
    "texts": (gguf(entry("a", 9, struct.pack("<IQ", 8, 2**40))), "an array of 1099511627776 texts"),
    "arrays": (gguf(entry("a", 9, struct.pack("<IQ", 9, 2))), "an array of the unknown type 9"),
    "type": (gguf(entry("a", 77, b"")), "the unknown type 77"),
    "truth": (gguf(entry("a", 7, b"\2")), "neither 0 nor 1"),
    "twice": (gguf(entry("a", 7, b"\1"), entry("a", 7, b"\1")), "has a twice"),
    "alignment": (gguf(entry("general.alignment", 4, struct.pack("<I", 3))), "no power of two"),
    "axes": (gguf(tensors=(tensor("a", (1,) * 9, 0, 0),)), "has 9 axes"),
    "kind": (gguf(tensors=(tensor("a", (8,), 99, 0),), data=bytes(32)), "99"),
    "size": (gguf(tensors=(tensor("a", (2**62, 2**62), 0, 0),)), "its tensor a ends at"),
    "rows": (gguf(tensors=(tensor("a", (8,), 8, 0),), data=bytes(32)), "rows of 8 numbers, no multiple of 32"),
    "offset": (gguf(tensors=(tensor("a", (8,), 0, 64),), data=bytes(128)), "said to begin at 64"),
    "same place": (gguf(tensors=(ONE, tensor("b", (8,), 0, 0)), data=bytes(64)), "b is said to begin at 0"),
    "same name": (gguf(tensors=(ONE, tensor("a", (8,), 0, 32)), data=bytes(64)), "the tensor a twice"),
    "cut": (gguf(tensors=(ONE,), data=bytes(31)), "its tensor a ends at"),
    "more": (gguf(tensors=(ONE,), data=bytes(64)), "32 bytes after its last tensor"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_lie_are_refused_within_the_file(tmp_path, what):
    content, message = HEADERS[what]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(RunError, match=rf"a\.gguf is not a whole GGUF file .*({message})"):
        llm.load(tmp_path / "a.gguf")


def test_a_header_is_what_was_written(tmp_path):
    content = gguf(
        entry("n", 10, struct.pack("<Q", 2**40)), tensors=(tensor("a", (8, 2), 0, 0),), data=bytes(range(64))
    )
    (tmp_path / "a.gguf").write_bytes(content)
    fields, tensors = read_header(tmp_path / "a.gguf")
    assert fields == {"n": 2**40} and tensors["a"].shape == (2, 8) and tensors["a"].data.tobytes() == bytes(range(64))
