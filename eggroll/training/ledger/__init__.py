"""The ledger: a generation as its key and a number per member, and parameters rebuilt from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll.moved import names_of

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
