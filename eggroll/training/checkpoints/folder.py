"""The checkpoints on disk: which there are, which are kept, which is read, and whether one is whole.

One is whole that has a manifest with the SHA-256 of each of its files, which is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eggroll.training.errors import RunError

MANIFEST = "MANIFEST.json"
_FORMAT = 1
_NAME = re.compile(r"(\d+)(?:-(\d+))?")  # the generation, and which attempt to save it after the first
_REMOVED = ".removed"
_TEMPORARY = "*.orbax-checkpoint-tmp*"  # what Orbax writes to before it renames


class _Entry(NamedTuple):
    step: int
    attempt: int
    path: Path


class CheckpointFolder:
    """The checkpoints on disk, as the first process of a run sees them.

    Args:
        path: the folder; it need not be there.
        keep: how many of the latest to keep.
        best: how many of those with the highest score to keep beside them.
    """

    def __init__(self, path: Path, keep: int, best: int) -> None:
        self.path = path
        self._keep, self._best = keep, best
        self._damaged: set[Path] = set()
        # Threads of Orbax may outlive their failed save a little: they must not write into the next attempt's files.
        self._last: tuple[int, int] | None = None

    def generations(self) -> list[int]:
        """The generations that have a checkpoint with a manifest, in order."""
        return sorted({entry.step for entry in self._entries() if _content(entry.path) is not None})

    def best(self) -> int | None:
        """The generation of the highest score."""
        found = [(_content(entry.path), entry.step) for entry in self._entries()]
        scored = [(content["score"], step) for content, step in found if content and content["score"] is not None]
        return max(scored)[1] if scored else None

    def prepare(self, generation: int, *, rewind: bool) -> str:
        """Makes room for a save; the name that the new checkpoint's folder is to have.

        Raises:
            RunError: there are later generations, and `rewind` does not allow to give them up.
            OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.sweep()
        entries = self._entries()
        later = [entry.step for entry in entries if entry.step > generation and _content(entry.path)]
        if later and not rewind:
            raise RunError(
                f"'{self.path}' has a checkpoint of generation {later[-1]}, later than {generation}: another run's. "
                "Go on from it with a restore, or choose another folder."
            )
        attempts = [entry.attempt for entry in entries if entry.step == generation]
        if self._last and self._last[0] == generation:
            attempts.append(self._last[1])
        self._last = (generation, max(attempts, default=-1) + 1)
        return f"{generation}-{self._last[1]}" if attempts else str(generation)

    def sweep(self, path: Path | None = None) -> None:
        """Removes what saves and removals cut short have left, and the folder `path` if it is half-written."""
        if path is not None and _content(path) is None:
            shutil.rmtree(path, ignore_errors=True)
        for pattern in (_TEMPORARY, f"*{_REMOVED}"):
            for left in self.path.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def prune(self, newest: int) -> None:
        """Removes what is not among the latest nor the best, half-written, damaged, or of a history given up."""
        entries, whole, scored = self._entries(), {}, {}
        for entry in entries:  # a later attempt takes an earlier one's place
            content = _content(entry.path)
            if content is not None and entry.step <= newest and entry.path not in self._damaged:
                whole[entry.step], scored[entry.step] = entry.path, content["score"]
        latest = heapq.nlargest(self._keep, whole)
        best = heapq.nlargest(self._best, ((score, step) for step, score in scored.items() if score is not None))
        kept = {whole[step] for step in (*latest, *(step for _, step in best))}
        for entry in entries:
            if entry.path not in kept:
                _remove(entry.path)
                self._damaged.discard(entry.path)

    def choose(self, generation: int | None) -> tuple[Path | None, dict[str, Any], list[Damaged]]:
        """The newest whole checkpoint, or that of a generation: its folder, its manifest's content, what was skipped.

        Raises:
            RunError: there are finished ones, but all are damaged; or that of `generation` is damaged or not there.
        """
        entries = [entry for entry in reversed(self._entries()) if generation is None or entry.step == generation]
        skipped: list[Damaged] = []
        for entry in entries:
            try:
                return entry.path, verify(entry.path), skipped
            except DamagedError as why:
                skipped.append(Damaged(entry.path, str(why)))
                self._damaged.add(entry.path)
        if generation is not None:
            self._not_there(generation, skipped)
        if any((entry.path / MANIFEST).exists() for entry in entries):
            raise RunError(
                f"Every checkpoint in '{self.path}' is damaged: {'; '.join(map(str, skipped))}. "
                "Bring one back from a copy, or begin anew in another folder."
            )
        return None, {}, skipped

    def _not_there(self, generation: int, skipped: list[Damaged]) -> None:
        there = ", ".join(map(str, self.generations())) or "none"
        why = f"is damaged: {'; '.join(map(str, skipped))}" if skipped else f"is not in '{self.path}'"
        raise RunError(f"The checkpoint of generation {generation} {why}. Generations there: {there}.")

    def _entries(self) -> list[_Entry]:
        """All folders named like checkpoints, oldest first."""
        paths = self.path.iterdir() if self.path.is_dir() else ()
        found = [(path, _NAME.fullmatch(path.name)) for path in paths if path.is_dir()]
        return sorted(_Entry(int(name[1]), int(name[2] or 0), path) for path, name in found if name)


def _content(path: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(path)
    except DamagedError:
        return None


def _remove(path: Path) -> None:
    """Removes a checkpoint: its name at once, then file by file. What resists is tried again at the next save."""
    with contextlib.suppress(OSError):
        gone = path.rename(path.with_name(path.name + _REMOVED))
        shutil.rmtree(gone, ignore_errors=True)


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that cannot be used.

    Attributes:
        path: its folder.
        reason: what is wrong with it.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DamagedError(ValueError):
    """A folder that is not what its manifest says, or that has none."""


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Makes the folder whole: writes `content` and the digest of every file in it, all or nothing.

    Every file is brought to the disk first, so that a manifest that outlives a power cut speaks of files that do too.

    Args:
        folder: a folder that nothing writes to any more; files written by other processes lie in it too.
        content: JSON; `read_manifest` and `verify` give it back.

    Raises:
        OSError: the disk does not take it; the folder then has no manifest.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "numbers").write_bytes(b"123")
        >>> write_manifest(folder, {"generation": 7})
        >>> verify(folder)
        {'generation': 7}
        >>> _ = (folder / "numbers").write_bytes(b"12")
        >>> verify(folder)
        Traceback (most recent call last):
        eggroll.training.checkpoints.folder.DamagedError: numbers has 2 bytes, not 3
    """
    files = {name: {"bytes": path.stat().st_size, "sha256": _digest(path, sync=True)} for name, path in _files(folder)}
    body = {"format": _FORMAT, "content": dict(content), "files": files}
    text = json.dumps({"sha256": _digest_of(body), **body}, indent=1)
    beside = folder / f"{MANIFEST}.part"
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync_folders(folder)
    beside.replace(folder / MANIFEST)
    _sync(folder)
    _sync(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `content` of the folder's manifest; the files themselves are not looked at.

    Raises:
        DamagedError: there is no manifest, or it is not as it was written.
    """
    return _read(folder)["content"]


def verify(folder: Path) -> dict[str, Any]:
    """The `content` of the manifest of a folder whose every file is as it was.

    Raises:
        DamagedError: the folder is half-written, or a file is missing, cut, altered or not in the manifest.
    """
    body = _read(folder)
    found = dict(_files(folder))
    for name, told in body["files"].items():
        if name not in found:
            raise DamagedError(f"{name} is missing")
        _compare(name, found.pop(name), told)
    if found:
        raise DamagedError(f"{', '.join(sorted(found))}: not in the manifest")
    return body["content"]


def _compare(name: str, path: Path, told: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != told["bytes"]:
            raise DamagedError(f"{name} has {size} bytes, not {told['bytes']}")
        if _digest(path) != told["sha256"]:
            raise DamagedError(f"{name} is altered: its SHA-256 is not that of the manifest")
    except OSError as why:
        raise DamagedError(f"{name} cannot be read: {why.strerror or why}") from why


def _read(folder: Path) -> dict[str, Any]:
    try:
        whole = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        told = whole.pop("sha256")
        if told != _digest_of(whole):
            raise DamagedError(f"{MANIFEST} is altered: its SHA-256 is not the one it states")
        if whole["format"] != _FORMAT:
            raise DamagedError(f"{MANIFEST} has format {whole['format']}; this version of eggroll reads {_FORMAT}")
    except FileNotFoundError as why:
        raise DamagedError(f"half-written: it has no {MANIFEST}") from why
    except OSError as why:
        raise DamagedError(f"{MANIFEST} cannot be read: {why.strerror or why}") from why
    except DamagedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as why:
        raise DamagedError(f"{MANIFEST} is cut or altered: it is not the JSON that was written") from why
    return whole


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below the folder but the manifest, by its name there."""
    ours = {folder / MANIFEST, folder / f"{MANIFEST}.part"}
    paths = sorted(path for path in folder.rglob("*") if path not in ours and (path.is_symlink() or not path.is_dir()))
    return [(path.relative_to(folder).as_posix(), path) for path in paths]


def _digest(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync_folders(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()):
        _sync(path)
    _sync(folder)


def _sync(folder: Path) -> None:
    """Brings a folder's list of names to the disk, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
