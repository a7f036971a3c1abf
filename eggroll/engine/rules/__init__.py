"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from eggroll.engine.interpreter import RULES
from eggroll.engine.rules import algebra, control_flow, convolution, indexing, linear, products

for family in (linear, indexing, products, convolution, algebra, control_flow):
    RULES.update(family.RULES)
