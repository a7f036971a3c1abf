"""Whether two jaxprs compute the same: a key that is equal for those that do, by the same operations."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from eggroll.engine import jax_compat
from eggroll.engine.sameness import NotDescribed, array_key

SMALL = 1 << 20  # bytes: an array on a device up to which it is known by its numbers, not as an object
# Of custom rules only what is computed counts: nothing here is differentiated.
RULES_OF_DERIVATIVES = {"jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "fun_jaxpr_thunk"}


def program_key(jaxpr: Any, consts: Iterable[Any]) -> Hashable:
    """Equal for jaxprs that compute the same by the same operations.

    Raises:
        NotDescribed: a constant that is traced, or a parameter of an equation that cannot be compared.
    """
    return _Numbered().jaxpr(jaxpr, consts)


class _Numbered:
    """Variables by when they come."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def jaxpr(self, jaxpr: Any, consts: Iterable[Any] | None = None) -> Hashable:
        jaxpr, own = jax_compat.open_jaxpr(jaxpr)
        heads = self._vars([*jaxpr.constvars, *jaxpr.invars])
        eqns = tuple(self._eqn(eqn) for eqn in jaxpr.eqns)
        values = tuple(map(_constant, own if consts is None else consts))
        return heads, eqns, self._vars(jaxpr.outvars), values

    def _vars(self, atoms: Iterable[Any]) -> Hashable:
        return tuple(self._atom(atom) for atom in atoms)

    def _atom(self, atom: Any) -> Hashable:
        if isinstance(atom, jax_compat.Literal):
            return "literal", type(atom.val), _constant(atom.val), atom.aval
        return self.known.setdefault(atom, len(self.known)), atom.aval

    def _eqn(self, eqn: Any) -> Hashable:
        params = [(name, self._param(v)) for name, v in sorted(eqn.params.items()) if name not in RULES_OF_DERIVATIVES]
        return eqn.primitive, self._vars(eqn.invars), tuple(params), self._vars(eqn.outvars), jax_compat.where_run(eqn)

    def _param(self, value: Any) -> Hashable:
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            return self.jaxpr(value)
        if isinstance(value, tuple | list):
            return (type(value), *map(self._param, value))
        if isinstance(value, dict):
            return tuple((name, self._param(v)) for name, v in value.items())
        if isinstance(value, np.ndarray | jax.Array):
            return _constant(value)
        try:
            hash(value)
        except TypeError as why:
            raise NotDescribed from why
        return type(value), value


def _constant(x: Any) -> Hashable:
    if isinstance(x, Tracer):
        raise NotDescribed
    if not isinstance(x, jax.Array):
        return type(x), array_key(x)
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return str(x.dtype), _constant(jax.random.key_data(x))
    if x.nbytes > SMALL or not x.is_fully_addressable:
        return "itself", id(x)  # a program that is kept holds it
    return str(x.sharding), x.weak_type, array_key(x)
