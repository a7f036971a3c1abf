"""How files of a run are opened: only regular ones are read, and nothing is written through a link that lies in it.

The folder itself may be a link, which its user gave; what is in it may not. Quick to import.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

from eggroll.training.errors import RunError, abridged, mended

MANIFEST = "MANIFEST.json"
LARGEST = 1 << 26  # bytes of a JSON file: what eggroll writes is far smaller, whatever the run
DEEPEST = 100  # levels of JSON: more would end Python's stack somewhere behind the reader
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


def open_to_read(path: Path) -> BufferedReader:
    """A file for reading, by whatever link; pipes and devices, which may never end, are not waited for.

    Raises:
        OSError: it is not there, cannot be read, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | _AT_ONCE)
    return open(_regular(handle, path), "rb")


def own_handle(path: Path, flags: int) -> int:
    """The handle of a file of a run that is written to in its place.

    Args:
        path: the file.
        flags: of `os.open`; it is made where they have `O_CREAT`.

    Raises:
        OSError: it cannot be written, or is a link, another file's second name, or no regular file.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, f"'{path.name}' is a symbolic link, and a run writes to files of its own alone")
    handle = _regular(os.open(path, flags | _AT_ONCE | _NO_LINK, 0o666), path)
    if os.fstat(handle).st_nlink > 1:
        os.close(handle)
        raise OSError(errno.EMLINK, f"'{path.name}' is a file that has another name too (a hard link): copy it first")
    return handle


def _regular(handle: int, path: Path) -> int:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"'{path.name}' is no regular file")
    return handle


def own_folder(path: Path) -> Path:
    """Makes a folder inside a run's, or makes sure that it is one.

    Raises:
        RunError: it is a link, or cannot be made.
    """
    check_own(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise not_writable(path, why) from why
    return path


def check_own(path: Path) -> None:
    """Raises `RunError` where a folder inside a run's is a link."""
    if path.is_symlink():
        raise RunError(
            f"'{path}' is a symbolic link, and a run writes to folders of its own alone: remove it, or put the whole "
            "run where it leads, with --out."
        )


def remove(path: Path) -> None:
    """Removes a file, a folder with all that is in it, or a link and not what it leads to; nothing if none is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Held:
    """A folder held open, so that names in it stay in it, whatever is renamed meanwhile.

    Args:
        path: the folder; a link is followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        able = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _AT_ONCE) if able else None

    def _at(self, name: str) -> str:
        return name if self._handle is not None else os.fspath(self.path / name)

    def create(self, name: str) -> BufferedRandom:
        """A file that was not there before."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _AT_ONCE
        return open(os.open(self._at(name), flags, 0o666, dir_fd=self._handle), "w+b")

    def replace(self, name: str, by: str) -> None:
        """Gives the file `by` another name, which a file, or a link, may have had."""
        os.replace(self._at(by), self._at(name), src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with suppress(OSError):
            os.unlink(self._at(name), dir_fd=self._handle)

    def sync(self) -> None:
        """Brings the list of names to the disk, where the system can do that."""
        if self._handle is not None:
            os.fsync(self._handle)

    def close(self) -> None:
        """Lets go of it."""
        if self._handle is not None:
            os.close(self._handle)


@contextmanager
def replacing(path: Path) -> Iterator[tuple[Held, BufferedRandom]]:
    """The one way in which files are written: a new file, beside, takes the place of `path` once it is on disk.

    After an error `path` is as it was.

    Raises:
        OSError: it cannot be written.
    """
    folder, partial = Held(path.parent), partial_name(path.name)
    try:
        with folder.create(partial) as file:
            yield folder, file
            file.flush()
            os.fsync(file.fileno())
        folder.replace(path.name, partial)
    except BaseException:
        folder.remove(partial)
        raise
    finally:
        folder.close()


def partial_name(name: str) -> str:
    """A name that nothing has yet, for what is being written."""
    return f".{name}.{secrets.token_hex(4)}.partial"


def is_partial(name: str) -> bool:
    """Whether it is such a name.

    Example:
        >>> is_partial(partial_name("config.json")), is_partial("mine.partial")
        (True, False)
    """
    return _PARTIAL.fullmatch(name) is not None


def not_writable(path: Path, why: OSError) -> RunError:
    """The error for a folder that the operating system refuses."""
    return RunError(f"cannot write to '{abridged(path)}' {mended(why)}.")


def read_json(path: Path, mend: str = "Restore it from a copy.", *, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        mend: a sentence that says what to do where it cannot be read.
        largest: bytes that are read, at most. Default 64 MiB.

    Raises:
        RunError: it cannot be read, is no JSON object, is larger, or nested more than 100 deep.
    """
    try:
        with open_to_read(path) as file:
            data = file.read(largest + 1)
        if len(data) > largest:
            raise ValueError(f"it has more than {largest} bytes")
        found = parse_json(data)
        if not isinstance(found, dict):
            raise ValueError(f"it is no JSON object, but a {type(found).__name__}")
    except OSError as why:
        raise RunError(f"cannot read '{path}' ({why.strerror or why}). {mend}") from why
    except ValueError as why:
        raise RunError(f"cannot read '{path}', which is not JSON as required ({why}). {mend}") from why
    return found


def parse_json(data: bytes | str) -> Any:
    """JSON as eggroll writes it: UTF-8, names once in an object, numbers that a float holds, bounded in depth.

    Raises:
        ValueError: other bytes, also where Python's parser gives up in another way.

    Example:
        >>> parse_json(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the name 'a' is there twice
    """
    text = data.decode() if isinstance(data, bytes) else data
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(found)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {twice[:50]!r} is there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:50]} is larger than a float holds")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [one for each in inner for one in each]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")
