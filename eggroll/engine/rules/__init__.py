"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from eggroll.engine.interpreter import RULES
from eggroll.engine.rules import calls, contraction, control_flow, convolution, indexing, joining, linear, structural

for family in (structural, indexing, joining, linear, contraction, convolution, calls, control_flow):
    RULES.update(family.RULES)
