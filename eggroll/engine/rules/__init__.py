"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from eggroll.engine.interpreter import RULES
from eggroll.engine.rules import control_flow, indexing, linear, placing, products, ragged, transforms

for family in (linear, indexing, placing, transforms, products, ragged, control_flow):
    RULES.update(family.RULES)
