"""A site: an output that gets noise in place of the parameters that it is made with."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """An output of an operation that parameters enter linearly, which gets noise of its own in every number.

    Attributes:
        where: the equation, by the numbers of those on the way to it from the outermost jaxpr.
        paths: of the parameters that enter.
        primitive: JAX primitive that made it.
        line: the user's source line.
        shape: of one turn of the loops around it.
        dtype: its dtype's name.
        loops: lengths of these loops, the outermost first; None where a length depends on data.
    """

    where: tuple[int, ...]
    paths: tuple[str, ...]
    primitive: str
    line: str
    shape: tuple[int, ...]
    dtype: str
    loops: tuple[int | None, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """Lengths of the loops whose length is known."""
        return tuple(n for n in self.loops if n is not None)

    @property
    def size(self) -> int:
        """Numbers of one evaluation; of a loop of unknown length, those of a turn."""
        return math.prod(self.shape) * math.prod(self.steps)
