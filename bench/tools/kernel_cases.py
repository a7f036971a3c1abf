"""What `bench.kernel_check` asks of every implementation: the comparisons of `eggroll.ops.cases`, at all shapes."""

from __future__ import annotations

import itertools

from bench.tools.kernel_shapes import MIDDLE, PAPER, SMALL
from eggroll.ops.cases import NOISE, Case

OPERATIONS = ("lowrank_dot", "rank_update")
DISTRIBUTIONS = ("rademacher", "normal")
DTYPES = ("float32", "bfloat16")


def cases(operation: str, *, quick: bool = False) -> list[Case]:
    """All cases of an operation, the ones that matter most first; `quick`: some small ones."""
    kinds = list(itertools.product(DISTRIBUTIONS, DTYPES))
    if quick:
        kinds.remove(("normal", "bfloat16"))  # XLA's CPU compiler takes 15 s for it
    exact = [kind for kind in kinds if kind != ("normal", "float32")]  # products of two numbers are
    seen = NOISE if quick else (*NOISE, PAPER)
    found = [Case(operation, shape, *kind, noise=True) for shape in seen for kind in exact]
    shapes = SMALL[1:2] if quick else (*MIDDLE, PAPER, *SMALL)
    found += [Case(operation, shape, *kind) for shape in shapes for kind in kinds]
    if operation == "lowrank_dot":
        narrow = [shape for shape in shapes if shape in SMALL]
        found += [Case(operation, s, d, "float32", highest=True) for s in narrow for d in DISTRIBUTIONS]
    return found
