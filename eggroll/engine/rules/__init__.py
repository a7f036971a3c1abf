"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from eggroll.engine.interpreter import RULES
from eggroll.engine.rules import algebra, control_flow, indexing, linear, products

for family in (linear, indexing, products, algebra, control_flow):
    RULES.update(family.RULES)
