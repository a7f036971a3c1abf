"""What happens where no rule keeps the factors apart: the dense weight, under a policy, never in silence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal, get_args

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.lowrank import Perturbed, Term

Fallback = Literal["warn", "allow", "error"]


class DenseFallbackWarning(UserWarning):
    """A perturbed weight had to be made dense: the result is right, but costs memory and time per member."""


class DenseFallbackError(RuntimeError):
    """A perturbed weight had to be made dense under `fallback="error"`."""


class Unsupported(Exception):
    """Raised by a rule which cannot keep the factors apart; the text says why."""


@dataclass(frozen=True)
class DenseFallback:
    """One place where a perturbed value had to be made dense.

    Attributes:
        path: parameter path.
        primitive: JAX primitive that asked for the dense value.
        line: the user's source line.
        reason: why no rule applied.
        bytes: size of the dense values of the whole population (of one member, if `members` is None).
        members: population, or None where it is not known.
    """

    path: str
    primitive: str
    line: str
    reason: str
    bytes: int
    members: int | None

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:,.3g} MB for "
        size += "each member" if self.members is None else f"the whole population of {self.members}"
        return (
            f"parameter '{self.path or '<unnamed>'}' is made dense for `{self.primitive}` at {self.line} "
            f"({self.reason}): {size}. The result is right but dear. Rewrite the line so that the weight meets a "
            'matrix product first, give the parameter a "dense" or "frozen" rule, or pass fallback="allow".'
        )


@dataclass
class Policy:
    """Collects fallbacks and warns, allows or raises as `mode` says."""

    mode: Fallback = "warn"
    records: list[DenseFallback] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fallback(self.mode)

    def report(self, value: Perturbed, term: Term, eqn: JaxprEqn | None, reason: str) -> None:
        """Records that `term` of `value` is about to be made dense for `eqn`."""
        members = term.source.members
        size = value.base.size * value.dtype.itemsize * (members or 1)
        name, line = ("the output", "the end of the function") if eqn is None else _place(eqn)
        record = DenseFallback(term.source.path, name, line, reason, size, members)
        if record in self.records:
            return
        self.records.append(record)
        if self.mode == "error":
            raise DenseFallbackError(str(record))
        if self.mode == "warn":
            warnings.warn(str(record), DenseFallbackWarning, stacklevel=2)


def check_fallback(mode: str) -> None:
    """Raises ValueError unless `mode` names a policy."""
    if mode not in get_args(Fallback):
        raise ValueError(f"fallback={mode!r}: use one of {', '.join(map(repr, get_args(Fallback)))}.")


def _place(eqn: JaxprEqn) -> tuple[str, str]:
    return eqn.primitive.name, jax_compat.source_line(eqn)
