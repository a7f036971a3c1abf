"""The ledger of a run: read, checked record by record. A tail cut short is left out, altered records are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from eggroll.training.errors import RunError
from eggroll.training.folder.disk import open_to_read
from eggroll.training.folder.layout import LEDGER
from eggroll.training.ledger.carried import Carried
from eggroll.training.ledger.format import (
    CARRIED,
    DIGEST,
    GENERATION,
    HEAD,
    MAGIC,
    SETTINGS,
    Generation,
    Settings,
    first_digest,
    read_head,
    record_digest,
)

__all__ = ["LEDGER", "Carried", "Generation", "LedgerError", "Reader", "Settings", "Summary", "summarize"]


class LedgerError(RunError):
    """A ledger that is none, or that was altered."""


class Reader:
    """Iterates over the records of a ledger, from the first on, each checked before it is handed out.

    Where the file ends in the middle of a record, the iteration ends at the last whole one.

    Args:
        path: the file.

    Attributes:
        position: byte after the last record that was handed out.
        digest: the digest of that record.
        records: how many were handed out.
        next: the generation that comes next; so many updates were handed out.
        settings: the last settings that were handed out, or None.
        cut: bytes after the last whole record; known when the iteration has ended.

    Raises:
        RunError: the file cannot be read.
        LedgerError: no ledger, or records that were altered, moved, removed or taken from elsewhere.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._start()

    def _start(self) -> None:
        self.position = self.records = self.next = self.cut = 0
        self.digest = first_digest()
        self.settings: Settings | None = None

    def __iter__(self) -> Iterator[Settings | Carried | Generation]:
        self._start()
        try:
            with open_to_read(self.path) as file:
                yield from self._entries(file)
        except OSError as why:
            raise RunError(f"cannot read the ledger '{self.path}' ({why.strerror or why}).") from why

    def _entries(self, file: BinaryIO) -> Iterator[Settings | Carried | Generation]:
        magic = file.read(len(MAGIC))
        if magic != MAGIC[: len(magic)]:
            raise LedgerError(_no_ledger(self.path, magic))
        if len(magic) < len(MAGIC):
            self.cut = len(magic)
            return
        self.position = len(MAGIC)
        while (entry := self._read(file)) is not None:
            yield entry

    def _read(self, file: BinaryIO) -> Settings | Carried | Generation | None:
        """The next record; None at the end of what is whole."""
        head = file.read(HEAD.size)
        if len(head) < HEAD.size:
            self.cut = len(head)
            return None
        found = read_head(head, self.digest)
        if found is None:
            self._zeros_or_refuse(head, file)
            return None
        kind, length = found
        left = os.fstat(file.fileno()).st_size - self.position - HEAD.size
        rest = file.read(min(length + DIGEST, max(left, 0)))  # a length may say anything
        if len(rest) < length + DIGEST:
            self.cut = len(head) + len(rest)
            return None
        payload, digest = rest[:length], rest[length:]
        if digest != record_digest(head, payload, self.digest):
            self._refuse("its checksum is not that of its content")
        entry = self._entry(kind, payload)
        self.position += len(head) + len(rest)
        self.digest, self.records = digest, self.records + 1
        return entry

    def _zeros_or_refuse(self, head: bytes, file: BinaryIO) -> None:
        """A power failure can leave zeros where a file had grown but nothing was written yet: also a cut tail."""
        self.cut = 0
        while head:
            if head.strip(b"\0"):
                self._refuse("the checksum of its head is wrong, or it does not follow the record before it")
            self.cut += len(head)
            head = file.read(1 << 16)

    def _entry(self, kind: bytes, payload: bytes) -> Settings | Carried | Generation:
        try:
            if kind == SETTINGS:
                self.settings = Settings.unpack(payload)
                return self.settings
            if kind not in (CARRIED, GENERATION):
                raise ValueError(f"a kind {kind!r} that this version does not know")
            entry = (Carried if kind == CARRIED else Generation).unpack(payload)
        except ValueError as why:  # JSON and UTF-8 errors are ValueErrors too
            self._refuse(f"it has {why}")
        other = isinstance(entry, Generation) and self.settings is not None and entry.settings != self.settings.digest
        if self.settings is None or other:
            self._refuse("its settings are not those that stand before it")
        if entry.generation != self.next:
            self._refuse(f"it is of generation {entry.generation}")
        self.next += isinstance(entry, Generation)
        return entry

    def _refuse(self, why: str) -> NoReturn:
        mend = f"Generations up to {self.next} can still be rebuilt; what comes after needs" if self.next else "Find"
        raise LedgerError(
            f"'{self.path}' was altered: record {self.records}, of generation {self.next} by its place, at byte "
            f"{self.position}: {why}. {mend} a sound copy of the ledger."
        )


@dataclass(frozen=True)
class Summary:
    """What a whole ledger holds.

    Attributes:
        path: the file.
        records: whole records.
        generations: updates, so that generations 0 to this can be rebuilt.
        settings: settings records; more than one where a run was resumed with others.
        bytes: of the whole records.
        cut: bytes of a tail that was cut short.
        digest: of the last record, in hexadecimal: whoever knows it knows the ledger.
        content: the first settings; empty for a ledger without records.
    """

    path: Path
    records: int
    generations: int
    settings: int
    bytes: int
    cut: int
    digest: str
    content: dict


def summarize(path: Path | str) -> Summary:
    """Reads and checks a whole ledger.

    Args:
        path: the file.

    Raises:
        RunError: as `Reader`.
    """
    reader, found = Reader(path), []
    found.extend(entry for entry in reader if isinstance(entry, Settings))
    content = found[0].content if found else {}
    whole = reader.position, reader.cut, reader.digest.hex()
    return Summary(reader.path, reader.records, reader.next, len(found), *whole, content)


def _no_ledger(path: Path, start: bytes) -> str:
    if start.startswith(MAGIC[:-2]):
        return f"'{path}' is a ledger of another version, {start!r}; this version of eggroll reads {MAGIC!r}."
    return f"'{path}' is no ledger: it starts with {start!r} instead of {MAGIC!r}, or its first bytes were altered."
