"""Whether files are as they were written: a manifest with the SHA-256 of each.

A checkpoint's and a model's is written last, and makes them whole. A run folder's is written with every file that
eggroll writes there, in an order that survives a kill at any moment. A folder without one is not compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

from eggroll.training.errors import RunError
from eggroll.training.folder.disk import MANIFEST, Held, is_partial, open_to_read, parse_json, replacing
from eggroll.training.folder.layout import CURVE, EVALUATION

_FORMAT = 1
_DERIVED = (CURVE, EVALUATION)  # made again where they are gone or damaged
_BLOCK = 1 << 20


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
    _sync_folders(folder)
    _write(folder, {"format": _FORMAT, "content": dict(content), "files": files})
    _sync(folder.parent)


def _write(folder: Path, body: Mapping[str, Any]) -> None:
    with replacing(folder / MANIFEST) as (_, file):
        file.write(json.dumps({"sha256": _digest_of(body), **body}, indent=1).encode())
    _sync(folder)


def begin_manifest(folder: Path) -> None:
    """Gives a run folder a manifest, if it has none: what `whole_file` writes there from now on is in it.

    Raises:
        OSError: it cannot be written.
    """
    if not (folder / MANIFEST).exists():
        _write(folder, {"format": _FORMAT, "content": {}, "files": {}})


def note(folder: Held, name: str, file: BufferedRandom) -> None:
    """Notes a file that is about to take the place of another in a folder that has a manifest; elsewhere nothing.

    A process killed in between leaves the earlier file, so the manifest knows both.
    """
    body = _kept(folder.path)
    if body is None:
        return
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    entry: dict[str, Any] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    try:
        with open_to_read(folder.path / name) as there:
            before = hashlib.file_digest(there, "sha256").hexdigest()
            entry["before"] = {"bytes": there.tell(), "sha256": before}
    except OSError:  # none
        pass
    _write(folder.path, {**body, "files": {**body["files"], name: entry}})


def note_growing(folder: Path, name: str, size: int, sha256: str) -> None:
    """Notes the first `size` bytes, which are on disk, of a file that grows; only where the folder has a manifest.

    Raises:
        OSError: the disk does not take it.
    """
    body = _kept(folder)
    if body is not None:
        entry = {"bytes": size, "sha256": sha256, "grows": True}
        _write(folder, {**body, "files": {**body["files"], name: entry}})


def _kept(folder: Path) -> dict[str, Any] | None:
    """The manifest that goes on; one that is damaged stays, to be told where it is compared."""
    try:
        return _read(folder)
    except DamagedError:
        return None


def check_run(folder: Path) -> None:
    """Raises `RunError` where a file in a run's folder is not as eggroll wrote it. One that is gone is no concern here.

    Example:
        >>> import tempfile
        >>> from eggroll.training.folder.files import write_text
        >>> folder = Path(tempfile.mkdtemp())
        >>> begin_manifest(folder)
        >>> write_text(folder / "config.json", "{}")
        >>> check_run(folder)
        >>> _ = (folder / "config.json").write_text("[]")
        >>> check_run(folder)
        Traceback (most recent call last):
        eggroll.training.errors.RunError: '...' is not as eggroll wrote it: config.json is altered: ... delete '...
    """
    _check(folder, apart=_DERIVED, gone=True)


def check_model(folder: Path) -> None:
    """Raises `RunError` where a model's folder that eggroll wrote is not as it was. Other files may lie in it."""
    _check(folder)


def is_as_written(file: Path) -> bool:
    """Whether a file is as eggroll wrote it, as far as that is known."""
    try:
        _compare_with(file.parent, _read(file.parent)["files"].get(file.name), file.name)
    except DamagedError:
        return not (file.parent / MANIFEST).exists()
    return True


def _check(folder: Path, *, apart: Collection[str] = (), gone: bool = False) -> None:
    if not (folder / MANIFEST).exists() and not (folder / MANIFEST).is_symlink():
        return
    try:
        for name, told in _read(folder)["files"].items():
            if name in apart or (gone and not (folder / name).exists()):
                continue
            _compare_with(folder, told, name)
    except DamagedError as why:
        raise RunError(
            f"'{folder}' is not as eggroll wrote it: {why}. Restore it from a copy; if it was changed on purpose, "
            f"delete '{folder / MANIFEST}', and nothing in that folder is compared any more."
        ) from why


def _compare_with(folder: Path, told: Mapping[str, Any] | None, name: str) -> None:
    if told is None:
        return
    try:
        _compare(name, folder / name, told)
    except DamagedError:
        if "before" not in told:
            raise
        _compare(name, folder / name, told["before"])


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
        with open_to_read(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != told["bytes"] and not (told.get("grows") and size > told["bytes"]):
                raise DamagedError(f"{name} has {size} bytes, not {told['bytes']}")
            found = _digest_of_start(file, told["bytes"])
        if found != told["sha256"]:
            raise DamagedError(f"{name} is altered: its SHA-256 is not that of the manifest")
    except OSError as why:
        raise DamagedError(f"{name} cannot be read: {why.strerror or why}") from why


def _digest_of_start(file: BufferedReader, size: int) -> str:
    """The digest of the first `size` bytes."""
    found = hashlib.sha256()
    while size and (block := file.read(min(size, _BLOCK))):
        found.update(block)
        size -= len(block)
    return found.hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    try:
        with open_to_read(folder / MANIFEST) as file:
            whole = parse_json(file.read())
        told = whole.pop("sha256")
        if told != _digest_of(whole):
            raise DamagedError(f"{MANIFEST} is altered: its SHA-256 is not the one it states")
        if whole["format"] != _FORMAT:
            raise DamagedError(f"{MANIFEST} has format {whole['format']}; this version of eggroll reads {_FORMAT}")
        if not isinstance(whole["content"], dict):
            raise DamagedError(f"{MANIFEST} has no content")
        for name, entry in whole["files"].items():
            _check_entry(name, entry)
            _check_entry(name, entry.get("before", entry))
    except FileNotFoundError as why:
        raise DamagedError(f"half-written: it has no {MANIFEST}") from why
    except OSError as why:
        raise DamagedError(f"{MANIFEST} cannot be read: {why.strerror or why}") from why
    except DamagedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise DamagedError(f"{MANIFEST} is cut or altered: it is not the JSON that was written") from why
    return whole


def _check_entry(name: str, entry: Mapping[str, Any]) -> None:
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not (inside and type(entry["bytes"]) is int and entry["bytes"] >= 0 and isinstance(entry["sha256"], str)):
        raise DamagedError(f"{MANIFEST} has an entry for {name!r} that was never written")


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below the folder but the manifest, by its name there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    ours = [path for path in paths if path.parent != folder or not (path.name == MANIFEST or is_partial(path.name))]
    return [(path.relative_to(folder).as_posix(), path) for path in ours]


def _digest(path: Path, *, sync: bool = False) -> str:
    with open_to_read(path) as file:
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
    """Brings a folder's list of names to the disk."""
    held = Held(folder)
    try:
        held.sync()
    finally:
        held.close()
