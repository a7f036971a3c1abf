"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from eggroll.engine.interpreter import RULES
from eggroll.engine.rules import (
    algebra,
    arithmetic,
    control_flow,
    convolution,
    indexing,
    linear,
    placing,
    products,
    ragged,
    transforms,
)

MOVING = (linear, indexing, placing, transforms)
for family in (*MOVING, arithmetic, products, convolution, algebra, ragged, control_flow):
    RULES.update(family.RULES)
