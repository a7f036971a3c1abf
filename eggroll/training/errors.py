"""What goes wrong with a run that its user can mend."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

LONGEST = 200  # characters of a name in a message

# What the operating system refuses, and what helps.
MENDS = {
    (errno.ENOSPC, errno.EDQUOT): "make room and go on with --resume, or choose {other}",
    (errno.EACCES, errno.EPERM): "get the permission for it, or choose {other}",
    (errno.EROFS,): "nothing can be written to that disk; choose {other}",
    (errno.ENOTDIR, errno.EEXIST): "there is a file where a folder is needed; choose {other}",
    (errno.EISDIR,): "there is a folder where a file is needed; choose {other}",
    (errno.ENOENT,): "make the folder that it lies in, or choose {other}",
    (errno.ENAMETOOLONG,): "most systems take 255 bytes a name, and 4095 in all; choose {other}",
    (errno.ELOOP,): "give it no link, nor links in a circle; or choose {other}",
    (errno.EFBIG,): "files may not be so large; raise the limit (`ulimit -f`) and go on with --resume",
    (errno.EMFILE, errno.ENFILE): "too many files are open; raise the limit (`ulimit -n`) and go on with --resume",
}


class RunError(ValueError):
    """A run that cannot start, go on or be read because of what was asked for or of what lies on disk.

    Attributes:
        result: what the run had, an `eggroll.training.Result`, if it was under way; else None.
        everywhere: whether all processes of the run raise it, so that they still say farewell to one another.
    """

    result: Any = None

    def __init__(self, message: str = "", *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def abridged(name: Any) -> str:
    """A name as it may stand in a message.

    Example:
        >>> abridged("runs/a"), len(abridged("x" * 5000))
        ('runs/a', 200)
    """
    text = str(name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def remedy(why: OSError, other: str = "another place with --out") -> str:
    """What helps against what the operating system refuses; `other` is what else the user may choose.

    Libraries hand its error on as text; that is read, too.

    Example:
        >>> remedy(OSError(errno.EROFS, "Read-only file system"))
        'nothing can be written to that disk; choose another place with --out'
        >>> remedy(OSError("I/O error: No space left on device (os error 28)")).partition(" and")[0]
        'make room'
    """
    said = why.strerror or str(why)
    for numbers, what in MENDS.items():
        if why.errno in numbers or (why.errno is None and any(os.strerror(n) in said for n in numbers)):
            return what.format(other=other)
    return f"mend that, or choose {other}"


def mended(why: OSError, other: str = "another place with --out") -> str:
    """What the operating system said, and what helps."""
    return f"({why.strerror or why}); {remedy(why, other)}"


def check_known(what: str, found: Iterable[str], known: Iterable[str], error: type[Exception] = RunError) -> None:
    """Raises unless all names are known: what is passed over may have decided something.

    Args:
        what: what has the names, for the message.
        found: names that are there.
        known: names that are understood.
        error: what is raised.

    Example:
        >>> check_known("the settings", ["rank"], ["population", "rank"])
    """
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise error(
            f"got {what} with {', '.join(map(repr, unknown[:8]))}, which this version of eggroll does not know, and so "
            f"cannot heed; known are {', '.join(sorted(known))}."
        )
