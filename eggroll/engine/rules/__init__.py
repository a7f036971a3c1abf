"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from eggroll.engine.interpreter import RULES
from eggroll.engine.rules import control_flow, indexing, linear, products

for family in (linear, indexing, products, control_flow):
    RULES.update(family.RULES)
