"""What a function makes of parameters before they meet an input: followed through its jaxpr, nothing is evaluated.

Every variable is known by the parameters it was made of, or as one that depends on an input (None).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.perturbed import Perturbed

Made = frozenset[int] | None

PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot_general"})
LOOKUPS = frozenset({"gather", "dynamic_slice"})


class Weights:
    """What is made of parameters alone.

    Attributes:
        multiplied: what enters a product, or is looked up, as a weight: numbers of inputs, and ids of equations that
            look something up at positions that depend on no input.
        alone: ids of the equations none of whose operands depends on an input.
    """

    def __init__(self) -> None:
        self.multiplied: set[int] = set()
        self.alone: set[int] = set()
        self._met: set[int] = set()

    def look(self, jaxpr: Any, made: Sequence[Made]) -> Weights:
        """Goes through a jaxpr whose inputs are made of the given parameters, or depend on an input."""
        self._walk(jaxpr, made)
        self.alone -= self._met  # an equation may be evaluated more than once
        return self

    def _walk(self, jaxpr: Any, made: Sequence[Made]) -> list[Made]:
        jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
        env: dict[Any, Made] = dict.fromkeys(jaxpr.constvars, frozenset())
        env.update(zip(jaxpr.invars, made, strict=True))

        def read(atom: Any) -> Made:
            return frozenset() if isinstance(atom, jax_compat.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            if eqn.primitive.name in PRODUCTS and frozenset() in operands:
                operands.append(None)  # a constant that is multiplied is data, as functions often have it around them
            (self._met if None in operands else self.alone).add(id(eqn))
            if eqn.primitive.name in PRODUCTS or (eqn.primitive.name in LOOKUPS and None in operands[1:]):
                self.multiplied.update(*(m for m in operands if m))
            if eqn.primitive.name in LOOKUPS and None not in operands:
                operands[0] = frozenset({id(eqn)}).union(operands[0] or ())
            outs = _WALKS.get(eqn.primitive.name, Weights._call)(self, eqn, operands)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _call(self, eqn: JaxprEqn, operands: Sequence[Made]) -> list[Made]:
        """A call walks what it calls; any other equation mixes its operands."""
        inner = jax_compat.inner_jaxprs(eqn)
        if len(inner) == 1 and len(jax_compat.open_jaxpr(inner[0])[0].invars) == len(operands):
            outs = self._walk(inner[0], operands)
            if len(outs) == len(eqn.outvars):
                return outs
        return [_mixed(operands)] * len(eqn.outvars)

    def _scan(self, eqn: JaxprEqn, operands: Sequence[Made]) -> list[Made]:
        consts, n_carry = jax_compat.scan_counts(eqn.params)
        fixed, carry, xs = operands[:consts], operands[consts : consts + n_carry], operands[consts + n_carry :]
        return self._settled(lambda c: self._walk(eqn.params["jaxpr"], [*fixed, *c, *xs]), carry)

    def _while(self, eqn: JaxprEqn, operands: Sequence[Made]) -> list[Made]:
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        fixed, carry = operands[n_cond : n_cond + n_body], operands[n_cond + n_body :]
        return self._settled(lambda c: self._walk(eqn.params["body_jaxpr"], [*fixed, *c]), carry)

    def _settled(self, step: Callable[[Sequence[Made]], list[Made]], carry: Sequence[Made]) -> list[Made]:
        while True:
            outs = step(carry)
            new = [_mixed(pair) for pair in zip(carry, outs, strict=False)]
            if new == list(carry):
                return outs
            carry = new

    def _cond(self, eqn: JaxprEqn, operands: Sequence[Made]) -> list[Made]:
        index, *rest = operands
        branches = [self._walk(b, rest) for b in eqn.params["branches"]]
        return [_mixed([index, *outs]) for outs in zip(*branches, strict=True)]


def _mixed(made: Sequence[Made]) -> Made:
    return None if None in made else frozenset().union(*(m for m in made if m))


_WALKS = {"scan": Weights._scan, "while": Weights._while, "cond": Weights._cond}


# Of arrays of one shape, and scalars, number by number: what masks and indices are made with.
ELEMENTWISE = {
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor", "not", "select_n", "convert_element_type", "add", "sub"),
    *("mul", "div", "rem", "neg", "max", "min", "clamp", "abs", "sign", "floor", "exp", "square", "integer_pow"),
}


class Notes:
    """What is known of plain arrays while a function is evaluated: which are a member's own, and where they vary."""

    def __init__(self) -> None:
        self._varying: dict[int, tuple[Any, frozenset[int]]] = {}
        self._own: dict[int, Any] = {}

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

    def note_varying(self, eqn: JaxprEqn, args: Sequence[Any], out: Any) -> None:
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
