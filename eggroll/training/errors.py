"""What goes wrong with a run that its user can mend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


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
