"""Whether a checkpoint is whole: a manifest with the SHA-256 of every file, written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
_FORMAT = 1


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
        eggroll.training.folder.integrity.DamagedError: numbers has 2 bytes, not 3
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
