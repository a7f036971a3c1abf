"""What a function makes of parameters before they meet an input: followed through its jaxpr, nothing is evaluated.

Every variable is known by the parameters it was made of, or as one that depends on an input (None).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn

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
