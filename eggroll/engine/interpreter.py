"""The interpreter: walks a jaxpr whose inputs may be perturbed, by the rules of its primitives.

Where no rule keeps the factors apart it takes the dense weight, under a policy, never in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args

import jax.numpy as jnp
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.draws import bind_alone, draws, draws_inside
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

# Evaluated in place; and these with others that are walked whether or not a value is perturbed.
CALLS = frozenset({"jit", "pjit", "closed_call", "call", "core_call", "eval_jaxpr"})
WALKED = CALLS | {"remat", "remat2", "checkpoint", "scan", "while", "cond"}

# Those that only put numbers elsewhere, or walk on: the casts of a perturbed value can wait until after them.
MOVES = CALLS | {
    *("transpose", "squeeze", "broadcast_in_dim", "rev", "reshape", "neg", "copy", "copy_p", "convert_element_type"),
    *("stop_gradient", "optimization_barrier", "sharding_constraint"),
    *("slice", "split", "unstack", "dynamic_slice", "gather"),
}

CARRY = "a loop carry that the body changes"
STACKED = "stacked output of a scan"
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
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_as_jax, consts), strict=True))
        env.update(zip(jaxpr.invars, map(_as_jax, args), strict=True))

        def read(atom: Any) -> Any:
            return _as_jax(atom.val) if isinstance(atom, jax_compat.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outs = self._apply(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _apply(self, eqn: JaxprEqn, args: list[Any]) -> list[Any]:
        if not any(isinstance(a, Perturbed) for a in args):
            return self._apply_plain(eqn, args)
        rule = RULES.get(eqn.primitive.name)
        reason = "no rule for this primitive"
        if rule is not None:
            settled = args if eqn.primitive.name in MOVES else [self._settled(a, eqn) for a in args]
            if not any(isinstance(a, Perturbed) for a in settled):
                return self._apply_plain(eqn, settled)
            try:
                with jax_compat.source_context(eqn):
                    return rule(self, eqn, settled)
            except Unsupported as why:
                reason = str(why)
        return self._apply_plain(eqn, [self.dense(a, eqn, reason) for a in args])

    def _apply_plain(self, eqn: JaxprEqn, args: list[Any]) -> list[Any]:
        if draws(eqn):
            return bind_alone(eqn, args)
        if draws_inside(eqn):
            if eqn.primitive.name not in WALKED:
                return bind_alone(eqn, args)
            with jax_compat.source_context(eqn):
                return RULES[eqn.primitive.name](self, eqn, args)
        outs = jax_compat.bind(eqn, args)
        if eqn.primitive.name == "broadcast_in_dim":
            self._note_broadcast(eqn, args[0], outs[0])
        return outs

    def _settled(self, value: Any, eqn: JaxprEqn) -> Any:
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
        return jax_compat.bind(eqn, [a.base if isinstance(a, Perturbed) else a for a in args])[0]

    def dense(self, value: Any, eqn: JaxprEqn | None, reason: str) -> Any:
        """The dense form of a value, reported to the policy; other values pass through."""
        if not isinstance(value, Perturbed):
            return value
        if self.observer is not None:
            if not self._silent:
                self.observer.dense(eqn, value)
            return value.cast_apart().base
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


def _as_jax(value: Any) -> Any:
    """NumPy's arrays, which constants may be, as JAX's: rules index them by traced positions."""
    return jnp.asarray(value) if isinstance(value, np.ndarray) and value.ndim else value
