"""Evaluate a function at low-rank perturbed parameters without forming them."""

from __future__ import annotations

from eggroll.engine import rules  # noqa: F401  they fill the interpreter's table
