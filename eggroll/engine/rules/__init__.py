"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from eggroll.engine.interpreter import RULES
from eggroll.engine.rules import (
    algebra,
    control_flow,
    convolution,
    indexing,
    linear,
    placing,
    products,
    ragged,
    scaling,
    transforms,
)

for family in (linear, scaling, indexing, placing, transforms, products, convolution, algebra, ragged, control_flow):
    RULES.update(family.RULES)
