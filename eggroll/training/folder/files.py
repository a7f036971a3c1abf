"""Files of a run that are written whole or not at all, and the lock of its folder."""

from __future__ import annotations

import datetime
import errno
import os
import socket
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from eggroll.training.errors import RunError, abridged, remedy
from eggroll.training.folder.disk import not_writable, own_handle, replacing
from eggroll.training.folder.integrity import note

try:
    import fcntl  # the system lets go of such a lock when the process ends, however it ends
except ImportError:  # Windows
    fcntl = None

LOCK = "run.lock"
_BUSY = (errno.EAGAIN, errno.EACCES)
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of `path` at the end, on disk; after an error `path` is as it was.

    Where its folder has a manifest, the new digest is in it before the file is in its place.

    Raises:
        RunError: it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole_file(path) as file:
        ...     _ = file.write(b"whole")
        >>> path.read_bytes()
        b'whole'
    """
    try:
        with replacing(path) as (folder, file):
            yield file
            file.flush()
            note(folder, path.name, file)
    except OSError as why:
        raise not_writable(path.parent, why) from why


def check_writable(path: Path) -> None:
    """Makes sure, before the work, that a file can be written there; leaves nothing behind.

    Raises:
        RunError: its folder is missing or cannot be written to, or it is a folder itself.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as why:
        raise not_writable(path if path.is_dir() else path.parent, why) from why


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(text.encode())


class FolderLock:
    """A context in which no other run, of this process or another, can have the same folder.

    The lock belongs to the open file, not to the file's presence: it is gone when the process is, even by SIGKILL, and
    the file that stays behind says only who was last. On a network file system it reaches as far as that system's
    `flock` does. A run of many processes takes it in the first of them only.

    Args:
        folder: the run's folder; made, with its parents, if it is not there.

    Raises:
        RunError: on entering: another run has the folder, or it cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with FolderLock(folder):
        ...     with FolderLock(folder):
        ...         pass
        Traceback (most recent call last):
        eggroll.training.errors.RunError: '...' is in use by process ... on ... since ...: a folder takes one ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        handle = self._open()
        try:
            self._take(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _held.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _open(self) -> int:
        if self._handle is not None:
            raise RunError(f"'{self.folder}' is locked by this very FolderLock already: make a new one for each run.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return own_handle(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as why:
            raise RunError(
                f"'{abridged(self.folder)}' cannot be written: {why.strerror or why}. A run keeps its files there: "
                f"{remedy(why)}."
            ) from why

    def _take(self, handle: int) -> None:
        if fcntl is None:
            warnings.warn("This system has no fcntl: nothing keeps a second run out of the folder.", stacklevel=3)
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as why:
            if why.errno not in _BUSY:
                raise RunError(
                    f"'{self.folder}' cannot be locked: {why.strerror or why}. Its file system keeps no locks: "
                    "choose a folder on one that does."
                ) from why
            raise RunError(
                f"'{self.folder}' is in use by {_holder(handle)}: a folder takes one run at a time. "
                "Wait for that run, end it, or choose another folder."
            ) from why
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)
        except OSError:  # a full disk: the lock holds all the same, and the text is only for people
            pass

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        _held.discard(self)
        if handle is not None:
            os.close(handle)


def _holder(handle: int) -> str:
    text = os.pread(handle, 500, 0).decode("utf-8", "replace").strip()
    return text or "another process"


def _let_go_in_child() -> None:
    """A forked child shares the open file, and would hold the lock after its parent's end."""
    for lock in list(_held):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
