"""Fine-tuning: settings, questions, the generation, evaluation and the job as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eggroll.moved import names_of

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
