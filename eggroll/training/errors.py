"""What goes wrong with a run that its user can mend."""

from __future__ import annotations

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
