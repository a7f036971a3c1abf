"""What becomes of values, read from a jaxpr before it is evaluated.

What is made of parameters before they meet an input; and whether all that is done with a value is linear and ends in a
product, or in a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Atom, Jaxpr, JaxprEqn, OpenJaxpr, Var

# Evaluated in place; and these with others that are walked whether or not a value is perturbed.
CALLS = frozenset({"jit", "pjit", "closed_call", "call", "core_call", "eval_jaxpr"})
WALKED = CALLS | {"remat", "remat2", "checkpoint", "scan", "while", "cond"}

# Those that only put numbers elsewhere, or walk on: the casts of a perturbed value can wait until after them.
MOVES = CALLS | {
    *("transpose", "squeeze", "broadcast_in_dim", "rev", "reshape", "neg", "copy", "copy_p", "convert_element_type"),
    *("stop_gradient", "optimization_barrier", "sharding_constraint"),
    *("slice", "split", "unstack", "dynamic_slice", "gather"),
}
# Those that know what to do with a value's scale, and with a product of two values that has not been made.
SCALES = MOVES | WALKED | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
SCALES |= {"mul", "div", "dot_general", "conv_general_dilated", "reduce_sum", "tile", "cumsum"}
WAITS = CALLS | {"convert_element_type", "reduce_sum"}

# What JAX cannot batch, or not in every form: rules that also do it for plain values.
BATCHED = {"ragged_dot_general"}

NOISE_KEY = "noise_key"  # a mark that hands on its first operand, judged when a function is traced

# Of arrays of one shape, and scalars, number by number: what masks and indices are made with.
ELEMENTWISE = {
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not", "select_n", "convert_element_type", "add", "sub"),
    *("mul", "div", "rem", "neg", "max", "min", "clamp", "abs", "sign", "floor", "exp", "square", "integer_pow"),
}

Origins = frozenset[int] | None

PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot_general"})
FACTORISATIONS = frozenset({"lu", "geqrf", "qr", "svd", "eigh", "eig", "cholesky", "schur", "custom_linear_solve"})
LOOKUPS = frozenset({"gather", "dynamic_slice"})


class Weights:
    """What is made of parameters alone.

    Attributes:
        multiplied: what enters a product, or is looked up, as a weight: numbers of inputs, and minus the ids of
            equations that look something up at positions that depend on no input.
        whole: those of them that enter it outside of loops that walk them: not slice by slice, as a stack of layers.
        alone: ids of the equations none of whose operands depends on an input.
    """

    def __init__(self) -> None:
        self.multiplied: set[int] = set()
        self.whole: set[int] = set()
        self.alone: set[int] = set()
        self._met: set[int] = set()
        self._looked: set[int] = set()
        self._scanned: dict[int, Sequence[Origins]] = {}  # by the id of a scan, its operands
        self._joined: list[Jaxpr] = []
        self._walked: frozenset[int] = frozenset()  # by the loops around
        self._data: set[int] = set()  # of lookups, what no product with an input uses: tokens that a function captures

    def look(self, jaxpr: Jaxpr, made: Sequence[Origins]) -> Weights:
        """Goes through a jaxpr whose inputs are made of the given parameters, or depend on an input."""
        while True:
            for found in (self.multiplied, self.whole, self.alone, self._met, self._looked):
                found.clear()
            self._walk(jaxpr, made)
            if (data := self._looked - self.multiplied) <= self._data:
                break
            self._data |= data  # what is made of it is then no weight, either
        self.alone -= self._met  # an equation may be evaluated more than once
        return self

    def join(self, eqn: JaxprEqn, jaxpr: Jaxpr) -> None:
        """Goes through a jaxpr that stands for a scan of what was looked through."""
        inner = Weights().look(jaxpr, self._scanned[id(eqn)])
        self.alone |= inner.alone
        self._scanned |= inner._scanned
        self._joined.append(jaxpr)  # so that ids of its equations stay their own

    def _walk(self, jaxpr: Jaxpr, made: Sequence[Origins]) -> list[Origins]:
        jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
        env: dict[Var, Origins] = dict.fromkeys(jaxpr.constvars, frozenset())
        env.update(zip(jaxpr.invars, made, strict=True))

        def read(atom: Atom) -> Origins:
            return frozenset() if isinstance(atom, jax_compat.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            if eqn.primitive.name in PRODUCTS and frozenset() in operands:
                operands.append(None)  # a constant that is multiplied is data, as functions often have it around them
            (self._met if None in operands else self.alone).add(id(eqn))
            if _multiplies(eqn, jaxpr) or (eqn.primitive.name in LOOKUPS and None in operands[1:]):
                weights = [m if None in operands else {i for i in m if i >= 0} for m in operands if m]
                self.multiplied.update(*weights)
                self.whole.update(*(m - self._walked for m in weights))
            if eqn.primitive.name in LOOKUPS and None not in operands and any(operands[:1]):
                self._looked.add(-id(eqn))
                found = None if -id(eqn) in self._data else frozenset({-id(eqn)}).union(operands[0] or ())
                operands[0] = found
            outs = _WALKS.get(eqn.primitive.name, Weights._call)(self, eqn, operands)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _call(self, eqn: JaxprEqn, operands: Sequence[Origins]) -> list[Origins]:
        """A call walks what it calls; any other equation mixes its operands."""
        inner = jax_compat.inner_jaxprs(eqn)
        if len(inner) == 1 and len(jax_compat.open_jaxpr(inner[0])[0].invars) == len(operands):
            outs = self._walk(inner[0], operands)
            if len(outs) == len(eqn.outvars):
                return outs
        return [_mixed(operands)] * len(eqn.outvars)

    def _scan(self, eqn: JaxprEqn, operands: Sequence[Origins]) -> list[Origins]:
        consts, n_carry = jax_compat.scan_counts(eqn.params)
        fixed, carry, xs = operands[:consts], operands[consts : consts + n_carry], operands[consts + n_carry :]
        self._scanned[id(eqn)] = operands
        before, self._walked = self._walked, self._walked.union(*filter(None, xs))
        outs = self._settled(lambda c: self._walk(eqn.params["jaxpr"], [*fixed, *c, *xs]), carry)
        self._walked = before
        return outs

    def _while(self, eqn: JaxprEqn, operands: Sequence[Origins]) -> list[Origins]:
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        fixed, carry = operands[n_cond : n_cond + n_body], operands[n_cond + n_body :]
        return self._settled(lambda c: self._walk(eqn.params["body_jaxpr"], [*fixed, *c]), carry)

    def _settled(self, step: Callable[[Sequence[Origins]], list[Origins]], carry: Sequence[Origins]) -> list[Origins]:
        while True:
            outs = step(carry)
            new = [_mixed(pair) for pair in zip(carry, outs, strict=False)]
            if new == list(carry):
                return outs
            carry = new

    def _cond(self, eqn: JaxprEqn, operands: Sequence[Origins]) -> list[Origins]:
        """Weights among which an input chooses stay weights."""
        branches = [self._walk(b, operands[1:]) for b in eqn.params["branches"]]
        return [_mixed(outs) for outs in zip(*branches, strict=True)]


def _multiplies(eqn: JaxprEqn, jaxpr: OpenJaxpr) -> bool:
    """Whether an equation takes its operands for matrices: `(x[:, :, None] * w).sum(1)` is a product in other words."""
    name = eqn.primitive.name
    if name not in PRODUCTS | {"mul"}:
        return name in FACTORISATIONS
    (out,) = eqn.outvars
    if name != "mul":
        return bool(getattr(out.aval, "shape", ()))  # else a sum of squares, by vdot
    pairs = list(zip(*(getattr(v.aval, "shape", ()) for v in eqn.invars), strict=False))
    both = {a for a, (m, n) in enumerate(pairs) if m == n > 1}
    sums = (set(e.params["axes"]) for e in jaxpr.eqns if e.primitive.name == "reduce_sum" and e.invars[0] is out)
    return any(m > n for m, n in pairs) and any(m < n for m, n in pairs) and any(both & axes for axes in sums)


def _mixed(made: Sequence[Origins]) -> Origins:
    return None if None in made else frozenset().union(*(m for m in made if m))


_WALKS = {"scan": Weights._scan, "while": Weights._while, "cond": Weights._cond}


@dataclass
class Frame:
    """A jaxpr that is being evaluated, the equation at which it stands, and what was `found` of its variables."""

    jaxpr: OpenJaxpr
    eqn: Any = None
    found: dict[Way, set[Var]] = field(default_factory=dict)


WRAPPERS = CALLS | {
    *("remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}


@dataclass(frozen=True, eq=False)
class Way:
    """Where a value may end, by primitive the operands that count, and what it may go through on the way."""

    ends: Mapping[str, Sequence[bool]]
    through: frozenset[str]
    scalars: bool


PRODUCT = Way(
    {"dot_general": (True, True), "conv_general_dilated": (False, True)},
    (MOVES - CALLS - {"gather", "dynamic_slice"}) | {"add", "sub", "add_any"},
    scalars=True,
)
SUM = Way({"reduce_sum": (True,)}, frozenset({"convert_element_type"}), scalars=False)


def leads(way: Way, frames: Sequence[Frame]) -> bool:
    """Whether every use of what the innermost frame's equation gives goes that way."""
    return all(v in _found(way, frames) for v in frames[-1].eqn.outvars)


def _found(way: Way, frames: Sequence[Frame]) -> set[Var]:
    """The variables of the innermost frame of which that holds."""
    *outer, frame = frames
    if way not in frame.found:
        called = bool(outer) and _calls(outer[-1].eqn)
        known = _found(way, outer) if called else set()
        wanted = [v in known for v in outer[-1].eqn.outvars] if called else None
        frame.found[way] = _backwards(way, frame.jaxpr, wanted)
    return frame.found[way]


def _calls(eqn: JaxprEqn) -> bool:
    """Whether it is evaluated as one jaxpr, with its results: so may be a scan that carries nothing."""
    maps = eqn.primitive.name == "scan" and jax_compat.scan_counts(eqn.params)[1] == 0
    return maps or eqn.primitive.name in WRAPPERS | {"dot_general"}


def _backwards(way: Way, jaxpr: OpenJaxpr, wanted: Sequence[bool] | None = None) -> set[Var]:
    uses: dict[Var, bool] = {}

    def note(variables: Sequence[Atom], good: Sequence[bool]) -> None:
        for v, g in zip(variables, good, strict=True):
            if not isinstance(v, jax_compat.Literal):
                uses[v] = g and uses.get(v, True)

    note(jaxpr.outvars, wanted or [False] * len(jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        note(eqn.invars, _entering(way, eqn, [uses.get(v, False) for v in eqn.outvars]))
    return {v for v, good in uses.items() if good}


def _entering(way: Way, eqn: Any, outs: list[bool]) -> Sequence[bool]:
    """Of every operand of an equation, from the same of its results."""
    name, n = eqn.primitive.name, len(eqn.invars)
    if name in way.ends:
        return way.ends[name]
    if name in way.through:
        return [all(outs)] * n
    if name in ("mul", "div") and way.scalars:
        scalar = [math.prod(v.aval.shape) == 1 for v in eqn.invars]
        return [outs[0] and scalar[1], outs[0] and scalar[0] and name == "mul"]
    if name in WRAPPERS:
        return _of_inputs(way, jax_compat.inner_jaxprs(eqn)[0], outs)
    if name == "scan":
        n_consts, n_carry = jax_compat.scan_counts(eqn.params)
        inner = _of_inputs(way, eqn.params["jaxpr"])
        return [good and not n_consts <= i < n_consts + n_carry for i, good in enumerate(inner)]
    if name == "while":
        skipped, taken = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        inner = _of_inputs(way, eqn.params["body_jaxpr"])[:taken]
        return [False] * skipped + inner + [False] * (n - skipped - taken)
    if name == "cond":
        each = [_of_inputs(way, branch) for branch in eqn.params["branches"]]
        return [False, *(all(good) for good in zip(*each, strict=True))]
    return [False] * n


def _of_inputs(way: Way, jaxpr: Jaxpr, wanted: Sequence[bool] | None = None) -> list[bool]:
    jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
    known = _backwards(way, jaxpr, wanted)
    return [v in known for v in jaxpr.invars]
