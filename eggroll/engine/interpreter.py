"""The interpreter: walks a jaxpr whose inputs may be perturbed, by the rules of its primitives.

Where no rule keeps the factors apart it takes the dense weight, under a policy, never in silence.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.ahead import BATCHED, ELEMENTWISE, MOVES, NOISE_KEY, PRODUCTS, SCALES, WAITS, WALKED, Frame, Weights
from eggroll.engine.annotations import Atom, JaxprEqn, Var
from eggroll.engine.checks import check_one_of
from eggroll.engine.perturbed import Perturbed, Term

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
        factor: how many times as many numbers the dense value has as its factors.
    """

    path: str
    primitive: str
    line: str
    reason: str
    bytes: int
    members: int | None
    factor: float = 1.0

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:,.3g} MB for "
        size += "each member" if self.members is None else f"the whole population of {self.members}"
        return (
            f"parameter '{self.path or '<unnamed>'}' is made dense for `{self.primitive}` at {self.line} "
            f"({self.reason}): {size}, {self.factor:,.3g} times as many numbers as its factors have. The result is "
            "right but dear. Rewrite the line so that the weight meets a matrix product first, give the parameter a "
            '"dense" or "frozen" rule, or pass fallback="allow".'
        )


@dataclass
class Policy:
    """Collects fallbacks and warns, allows or raises as `mode` says."""

    mode: Fallback = "warn"
    records: list[DenseFallback] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fallback(self.mode)

    def report(
        self, value: Perturbed, term: Term, eqn: JaxprEqn | None, reason: str, size: int | None = None, parts: int = 1
    ) -> None:
        """Records that `term` of as many `parts`, or what has `size` numbers each, is about to be dense for `eqn`."""
        members, size = term.source.members, value.base.size if size is None else size
        name = "the output" if eqn is None else eqn.primitive.name
        line = "the end of the function" if eqn is None else jax_compat.source_line(eqn)
        n_bytes = parts * size * value.dtype.itemsize * (members or 1)
        factor = size / max(1, sum(math.prod(f.numbers.shape) for f in term.factors))
        self.tell(DenseFallback(term.source.path, name, line, reason, n_bytes, members, factor))

    def tell(self, record: DenseFallback) -> None:
        """Records, once, and warns or raises as the mode says."""
        if record in self.records:
            return
        self.records.append(record)
        if self.mode == "error":
            raise DenseFallbackError(str(record))
        if self.mode == "warn":
            warnings.warn(str(record), DenseFallbackWarning, stacklevel=2)


def check_fallback(mode: str) -> None:
    """Raises ValueError unless `mode` names a policy."""
    check_one_of("fallback", mode, get_args(Fallback))


# By primitive: how it acts on perturbed values. `eggroll.engine.rules` fills it, which `eggroll.engine` imports.
RULES: dict[str, Callable[..., list[Any]]] = {}

EXACT_BELOW = 2  # bytes: rounded to fewer, most members would have the weights of their neighbours

Out = TypeVar("Out")


class Observer(Protocol):
    """Told how parameters are used; given only while usage is being discovered."""

    def product(self, eqn: JaxprEqn, value: Perturbed, contracted: Sequence[int], batch: Sequence[int]) -> None:
        """`value` enters a product which sums over `contracted` and pairs up `batch` axes."""

    def dense(self, eqn: JaxprEqn | None, value: Perturbed) -> None:
        """`value` is used where only its dense form will do."""


class Interpreter:
    """Walks a jaxpr whose inputs may be `Perturbed`.

    It knows, as far as it can, which plain arrays are a member's own: what all share is worth keeping apart.
    With an `observer`, terms are probes (one factor per parameter axis): rules track axes, and products report what
    they contract instead of adding corrections.
    """

    def __init__(self, policy: Policy, observer: Observer | None = None) -> None:
        self.policy = policy
        self.observer = observer
        self.weights = Weights()  # what is evaluated makes of parameters alone
        self.frames: list[Frame] = []
        self._varying: dict[int, tuple[Any, frozenset[int]]] = {}
        self._own: dict[int, Any] = {}
        self.made: dict[int, Any] = {}  # by id, the operands of products that stayed perturbed
        self._silent = False

    def evaluate(self, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
        """Evaluates an open or closed jaxpr; outputs may be `Perturbed`."""
        jaxpr, consts = jax_compat.open_jaxpr(jaxpr)
        env: dict[Var, Any] = dict(zip(jaxpr.constvars, map(jax_compat.as_jax, consts), strict=True))
        env.update(zip(jaxpr.invars, map(jax_compat.as_jax, args), strict=True))

        def read(atom: Atom) -> Any:
            return jax_compat.as_jax(atom.val) if isinstance(atom, jax_compat.Literal) else env[atom]

        self.frames.append(frame := Frame(jaxpr))
        for frame.eqn in jaxpr.eqns:
            args = [read(v) for v in frame.eqn.invars]
            outs = self._apply(frame.eqn, args)
            if any(map(self.is_own, args)):
                self.note_own(*outs)
            env.update(zip(frame.eqn.outvars, outs, strict=True))
        self.frames.pop()
        return [read(v) for v in jaxpr.outvars]

    def is_own(self, value: Any) -> bool:
        """Whether a value is known to differ between members."""
        return isinstance(value, Perturbed) or id(value) in self._own or jax_compat.is_batched(value)

    def note_own(self, *values: Any) -> None:
        """Plain values that differ between members; of perturbed ones the bases count."""
        self._own |= {id(v): v for v in values if not isinstance(v, Perturbed)}  # kept, so its id stays its own

    def hand_on(self, outer: Sequence[Any], inner: Sequence[Any]) -> None:
        """Notes of what enters a call what was known of it outside."""
        for o, i in zip(outer, inner, strict=True):
            was, now = (v.base if isinstance(v, Perturbed) else v for v in (o, i))
            if self.is_own(was):
                self.note_own(now)

    def _apply(self, eqn: JaxprEqn, args: list[Any]) -> list[Any]:
        if not any(isinstance(a, Perturbed) for a in args):
            return self._apply_plain(eqn, args)
        reason = "no rule for this primitive"
        if (rule := RULES.get(eqn.primitive.name)) is not None:
            settled = [self._known(a, eqn) for a in args]
            if not any(isinstance(a, Perturbed) for a in settled):
                return self._apply_plain(eqn, settled)
            try:
                with jax_compat.source_context(eqn):
                    outs = rule(self, eqn, settled)
                self._note_product(eqn, settled, outs)
                return outs
            except Unsupported as why:
                reason = str(why)
        return self._apply_plain(eqn, [self.dense(a, eqn, reason) for a in args])

    def _apply_plain(self, eqn: JaxprEqn, args: list[Any]) -> list[Any]:
        if eqn.primitive.name == NOISE_KEY:
            return args[:1]  # judged when the function was traced
        if jax_compat.draws(eqn) or (jax_compat.draws_inside(eqn) and eqn.primitive.name not in WALKED):
            return jax_compat.bind_alone(eqn, args)
        walked = eqn.primitive.name in WALKED and jax_compat.holds(eqn, BATCHED)
        if walked or jax_compat.draws_inside(eqn) or eqn.primitive.name in BATCHED:
            with jax_compat.source_context(eqn):
                return RULES[eqn.primitive.name](self, eqn, args)
        outs = jax_compat.bind(eqn, args)
        self._note_varying(eqn, args, outs[0] if outs else None)
        return outs

    def _note_product(self, eqn: JaxprEqn, args: Sequence[Any], outs: Sequence[Any]) -> None:
        """Reports a product of weights alone that is dense: no rule failed, but everything after it is dense."""
        if eqn.primitive.name not in PRODUCTS or id(eqn) not in self.weights.alone or isinstance(outs[0], Perturbed):
            return
        if self.observer is not None or self._silent or sum(n > 1 for n in outs[0].shape) < 2:
            return
        told = {r.path for r in self.policy.records if r.line == jax_compat.source_line(eqn)}
        for value in args:
            for term in value.terms if isinstance(value, Perturbed) else ():
                if term.source.path not in told:
                    reason = "a product of weights, after which all is dense"
                    self.policy.report(value, term, eqn, reason, outs[0].size)

    def _known(self, value: Any, eqn: JaxprEqn) -> Any:
        """A value with nothing that the equation's rule does not know: a scale, a product to be made, casts."""
        name = eqn.primitive.name
        if isinstance(value, Perturbed):
            if value.times is not None and name not in WAITS:
                return self.dense(value, eqn, "a product of two perturbed values, number by number")
            if value.scale is not None and name not in SCALES:
                return self.dense(value, eqn, "a value that every member scales by numbers of its own")
        return value if name in MOVES else self.settled(value, eqn)

    def settled(self, value: Any, eqn: JaxprEqn) -> Any:
        """A value whose casts are made: apart, or of the sum where that is rounded to a byte or less.

        In discovery they keep the factors apart: how a parameter is used does not depend on its rounding.
        """
        if not isinstance(value, Perturbed):
            return value
        if self.observer is None and value.narrowest.itemsize < EXACT_BELOW:
            return self.dense(value, eqn, f"{value.narrowest} rounds the sum of weight and noise")
        return value.cast_apart()

    def base(self, eqn: JaxprEqn, args: Sequence[Any]) -> Any:
        """The equation applied to the bases: the product or reshaping that all members share."""
        bases = [a.base if isinstance(a, Perturbed) else a for a in args]
        out = jax_compat.bind(eqn, bases)[0]
        if any(map(self.is_own, bases)):
            self.note_own(out)
        self._note_varying(eqn, bases, out)
        return out

    def dense(self, value: Any, eqn: JaxprEqn | None, reason: str, parts: int = 1) -> Any:
        """The dense form of a value, of which `parts` are kept, reported to the policy; others pass through."""
        if not isinstance(value, Perturbed):
            return value
        if self.observer is not None:
            if not self._silent:
                self.observer.dense(eqn, value)
            return value.cast_apart().base
        if not self._silent:
            for term in (*value.terms, *(value.times.terms if value.times else ())):
                if not term.quiet:
                    self.policy.report(value, term, eqn, reason, parts=parts)
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

    def _note_varying(self, eqn: JaxprEqn, args: Sequence[Any], out: Any) -> None:
        """Keeps track of the axes along which what is broadcast, a mask or indices, may vary."""
        name = eqn.primitive.name
        if name == "broadcast_in_dim":
            dims = eqn.params["broadcast_dimensions"]
            axes = {dims[i] for i in self.varying(args[0]) if np.shape(args[0])[i] != 1}
        elif name == "iota":
            axes = {eqn.params["dimension"]}
        elif name == "reshape" and out.shape[: args[0].ndim] == args[0].shape and id(args[0]) in self._varying:
            axes = self.varying(args[0])  # new axes of size one behind the others
        elif name in ELEMENTWISE and any(id(a) in self._varying for a in args):
            axes = {i for a in args for i in self.varying(a)}
        else:
            return
        self._varying[id(out)] = (out, frozenset(axes))  # the array is kept, so its id stays its own

    def varying(self, value: Any) -> frozenset[int]:
        """Axes along which a plain array may vary, as far as its own broadcast tells."""
        known = self._varying.get(id(value))
        return known[1] if known else frozenset(range(np.ndim(value)))
