"""The header of a llama.cpp file (GGUF), read within the bounds of the file: metadata, and where tensors lie."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eggroll.training.errors import RunError

__all__ = ["Header", "Tensor", "read_header"]

VERSIONS = (2, 3)
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, ARRAY = 8, 9
BYTES_OF_TEXT = 8  # that even an empty text takes: its length
MOST_AXES = 4


class Tensor(NamedTuple):
    """A tensor of a file.

    Attributes:
        kind: how numbers are written: a `gguf.GGMLQuantizationType`.
        shape: slowest axis first, as NumPy has it.
        data: bytes `[..., bytes of a row]`, not read yet.
    """

    kind: Any
    shape: tuple[int, ...]
    data: np.ndarray


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        fields: metadata by name.
        tensors: by name.
    """

    fields: dict[str, Any]
    tensors: dict[str, Tensor]


class _Bytes:
    """A file from its beginning on; raises `ValueError` for what cannot be there."""

    def __init__(self, data: np.ndarray) -> None:
        self._data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise ValueError(f"it has {len(self._data)} bytes, and its header goes on after them")
        self.at += size
        return self._data[self.at - size : self.at].tobytes()

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self._numbers(kind, 1)[0]
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"it has metadata of the unknown type {kind}")
        of, length = self.number("I"), self.number("Q")
        if of in NUMBERS:
            return self._numbers(of, length)
        if of != TEXT:
            raise ValueError(f"it has an array of the unknown type {of}")
        if length * BYTES_OF_TEXT > len(self._data) - self.at:
            raise ValueError(f"it has an array of {length} texts, for which it is too short")
        return [self.text() for _ in range(length)]

    def _numbers(self, kind: int, count: int) -> list[Any]:
        found = np.frombuffer(self.take(count * np.dtype(NUMBERS[kind]).itemsize), NUMBERS[kind])
        if NUMBERS[kind] == "?" and np.any(found.view(np.uint8) > 1):
            raise ValueError("it has a truth value that is neither 0 nor 1")
        return found.tolist()


def read_header(file: Path) -> Header:
    """Reads all but the tensors, which stay on disk until they are asked for.

    A file that was cut off, or that has bytes which no tensor claims, is refused; a byte that changed inside a tensor
    cannot be seen.

    Raises:
        RunError: not a GGUF file, or a damaged one.
    """
    try:
        return _read(np.memmap(file, mode="r"))
    except (ValueError, KeyError, OSError, OverflowError) as error:  # a text that is no UTF-8 is a ValueError
        raise RunError(f"{file} is not a whole GGUF file ({error}); fetch or copy it again.") from error


def _read(data: np.ndarray) -> Header:
    source = _Bytes(data)
    if source.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = source.number("I")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}; little-endian files of {VERSIONS[0]} and {VERSIONS[1]} are read")
    tensors, entries = source.number("Q"), source.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(entries):  # an entry too many ends at the end of the file
        name = source.text()
        if name in fields:
            raise ValueError(f"it has {name} twice")
        fields[name] = source.value(source.number("I"))
    described = [_described(source) for _ in range(tensors)]
    align = fields.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1 or align & (align - 1):
        raise ValueError(f"it has general.alignment={align!r}, which is no power of two")
    return Header(fields, _placed(described, data, -(-source.at // align) * align, align))


def _described(source: _Bytes) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, kind, offset) of the next tensor."""
    name, axes = source.text(), source.number("I")
    if not 1 <= axes <= MOST_AXES:
        raise ValueError(f"its tensor {name} has {axes} axes")
    return name, tuple(source.number("Q") for _ in range(axes))[::-1], source.number("I"), source.number("Q")


def _placed(described: Sequence[tuple[str, tuple, int, int]], data: np.ndarray, at: int, align: int) -> dict[str, Any]:
    """Tensors by name: one after the other, as llama.cpp requires, up to the end of the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    tensors: dict[str, Tensor] = {}
    begin, end = at, min(at, len(data)) if not described else at
    for name, shape, number, offset in described:
        if name in tensors:
            raise ValueError(f"it has the tensor {name} twice")
        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise ValueError(f"its tensor {name} has rows of {shape[-1]} numbers, no multiple of {block}")
        row = shape[-1] // block * size
        if offset != at - begin:
            raise ValueError(f"its tensor {name} is said to begin at {offset}, and the one before ends at {at - begin}")
        end = at + math.prod(shape[:-1]) * row
        if end > len(data):
            raise ValueError(f"it has {len(data)} bytes, and its tensor {name} ends at {end}")
        tensors[name] = Tensor(kind, shape, data[at:end].reshape(*shape[:-1], row))
        at = -(-end // align) * align
    if not end <= len(data) <= at:
        raise ValueError(f"it has {len(data) - end} bytes after its last tensor")
    return tensors
