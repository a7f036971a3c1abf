"""All families that are read, by `model_type`.

Nothing here computes: the decoder knows features alone. What a family's configuration may say is in these tables, or it
is refused by name.
"""

from __future__ import annotations

from eggroll.llm.model.families import layered, mixtures, rms
from eggroll.llm.model.families.family import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = rms.FAMILIES | layered.FAMILIES | mixtures.FAMILIES
