"""A run's folder: its files and its lock, and what is written down of its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll.moved import names_of

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
