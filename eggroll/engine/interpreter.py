"""The interpreter: walks a jaxpr whose inputs may be perturbed, by the rules of its primitives.

Where no rule keeps the factors apart it takes the dense weight, under a policy, never in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np

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
        name, line = "the output", "the end of the function"
        if eqn is not None:
            name, line = eqn.primitive.name, jax_compat.source_line(eqn)
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


# By primitive: how it acts on perturbed values. `eggroll.engine.rules` fills it, which `eggroll.engine` imports.
RULES: dict[str, Callable[..., list[Any]]] = {}

Out = TypeVar("Out")


class Observer(Protocol):
    """Told how parameters are used; given only while usage is being discovered."""

    def product(self, eqn: JaxprEqn, value: Perturbed, contracted: Sequence[int], batch: Sequence[int]) -> None:
        """`value` enters a product which sums over `contracted` and pairs up `batch` axes."""

    def dense(self, eqn: JaxprEqn | None, value: Perturbed) -> None:
        """`value` is used where only its dense form will do."""


class Interpreter:
    """Walks a jaxpr whose inputs may be `Perturbed`.

    With an `observer`, terms are probes (one factor per parameter axis): rules track axes, and products report what
    they contract instead of adding corrections.
    """

    def __init__(self, policy: Policy, observer: Observer | None = None) -> None:
        self.policy = policy
        self.observer = observer
        self._varying: dict[int, tuple[Any, frozenset[int]]] = {}
        self._silent = False

    def evaluate(self, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
        """Evaluates an open or closed jaxpr; outputs may be `Perturbed`."""
        jaxpr, consts = jax_compat.open_jaxpr(jaxpr)
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jax_compat.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outs = self._apply(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _apply(self, eqn: JaxprEqn, args: list[Any]) -> list[Any]:
        if not any(isinstance(a, Perturbed) for a in args):
            outs = jax_compat.bind(eqn, args)
            if eqn.primitive.name == "broadcast_in_dim":
                self._note_broadcast(eqn, args[0], outs[0])
            return outs
        rule = RULES.get(eqn.primitive.name)
        reason = "no rule for this primitive"
        if rule is not None:
            try:
                with jax_compat.source_context(eqn):
                    return rule(self, eqn, args)
            except Unsupported as why:
                reason = str(why)
        return jax_compat.bind(eqn, [self.dense(a, eqn, reason) for a in args])

    def base(self, eqn: JaxprEqn, args: Sequence[Any]) -> Any:
        """The equation applied to the bases: the product or reshaping that all members share."""
        return jax_compat.bind(eqn, [a.base if isinstance(a, Perturbed) else a for a in args])[0]

    def dense(self, value: Any, eqn: JaxprEqn | None, reason: str) -> Any:
        """The dense form of a value, reported to the policy; other values pass through."""
        if not isinstance(value, Perturbed):
            return value
        if self.observer is not None:
            if not self._silent:
                self.observer.dense(eqn, value)
            return value.base
        if not self._silent:
            for term in value.terms:
                self.policy.report(value, term, eqn, reason)
        return value.dense()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Reports nothing: for abstract evaluations that only find out structure."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def product(self, eqn: JaxprEqn, value: Perturbed, contracted: Sequence[int], batch: Sequence[int]) -> bool:
        """True where a product only has to be reported (discovery)."""
        if self.observer is not None and not self._silent:
            self.observer.product(eqn, value, contracted, batch)
        return self.observer is not None

    def _note_broadcast(self, eqn: JaxprEqn, operand: Any, out: Any) -> None:
        dims = eqn.params["broadcast_dimensions"]
        inner = self.varying(operand)
        axes = frozenset(dims[i] for i in inner if np.shape(operand)[i] != 1)
        self._varying[id(out)] = (out, axes)  # the array is kept, so its id stays its own

    def varying(self, value: Any) -> frozenset[int]:
        """Axes along which a plain array may vary, as far as its own broadcast tells."""
        known = self._varying.get(id(value))
        return known[1] if known else frozenset(range(np.ndim(value)))
