"""Rules: how each JAX primitive acts on a perturbed value, by primitive name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eggroll.engine.rules import calls, contraction, control_flow, convolution, indexing, joining, linear, structural

RULES: dict[str, Callable[..., list[Any]]] = {
    **structural.RULES,
    **indexing.RULES,
    **joining.RULES,
    **linear.RULES,
    **contraction.RULES,
    **convolution.RULES,
    **calls.RULES,
    **control_flow.RULES,
}
