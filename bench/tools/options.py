"""The options that all scripts share."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Common:
    """Options of every script.

    Attributes:
        quick: small sizes and few rounds, to see that the script works; not kept.
        out: file for the result instead of the one under bench/results.
    """

    quick: bool = False
    out: pathlib.Path | None = None
