"""Files that are written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import IO

from eggroll.training.folder.disk import not_writable, replacing
from eggroll.training.folder.integrity import note


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
            raise IsADirectoryError(EISDIR, "it is a folder", str(path))
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
