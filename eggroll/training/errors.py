"""What goes wrong with a run that its user can mend."""

from __future__ import annotations


class RunError(ValueError):
    """A run that cannot start, go on or be read because of what was asked for or of what lies on disk."""
