"""Counts as they come from users."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_count(name: str, value: Any, least: int = 1, hint: str = "") -> int:
    """`value` as a Python integer of at least `least`; NumPy's integers count, booleans and floats do not.

    Args:
        name: the setting's name, for the message.
        value: what the user gave.
        least: the smallest allowed value.
        hint: what to do, added to the message.

    Returns:
        The integer.

    Raises:
        ValueError: no integer, or one below `least`.

    Example:
        >>> import numpy as np
        >>> as_count("population", np.int64(8))
        8
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"got {name}={value!r}; an integer of at least {least} is required.{hint}")
    return int(value)
