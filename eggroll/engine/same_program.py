"""Whether two jaxprs compute the same: a key that is equal for those that do, by the same operations."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Atom, Jaxpr, JaxprEqn, Var

SMALL = 1 << 20  # bytes: an array on a device up to which it is known by its numbers, not as an object
# Of custom rules only what is computed counts: nothing here is differentiated.
RULES_OF_DERIVATIVES = {"jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "fun_jaxpr_thunk"}


class NotDescribed(Exception):
    """There is something whose changes would not be seen."""


@dataclass(frozen=True)
class ProgramKey:
    """What a jaxpr computes: equal for those that compute the same by the same operations.

    Attributes:
        key: what is compared.
        on_host: arrays of the user's that the jaxpr holds, and which may be changed in place, with what they were.
    """

    key: Hashable
    on_host: tuple[tuple[np.ndarray, Hashable], ...] = field(compare=False)

    def holds(self) -> bool:
        """Whether the jaxpr still computes what it did when it was traced."""
        return all(array_key(x) == before for x, before in self.on_host)


def program_key(jaxpr: Jaxpr, consts: Iterable[Any]) -> ProgramKey:
    """What is equal for jaxprs that compute the same by the same operations.

    Raises:
        NotDescribed: a constant that is traced, or a parameter of an equation that cannot be compared.
    """
    numbered = _Numbered()
    return ProgramKey(numbered.jaxpr(jaxpr, consts), tuple(numbered.on_host))


class _Numbered:
    """Variables by when they come."""

    def __init__(self) -> None:
        self.known: dict[Var, int] = {}
        self.on_host: list[tuple[np.ndarray, Hashable]] = []

    def jaxpr(self, jaxpr: Jaxpr, consts: Iterable[Any] | None = None) -> Hashable:
        jaxpr, own = jax_compat.open_jaxpr(jaxpr)
        heads = self._vars([*jaxpr.constvars, *jaxpr.invars])
        eqns = tuple(self._eqn(eqn) for eqn in jaxpr.eqns)
        values = tuple(map(self._constant, own if consts is None else consts))
        return heads, eqns, self._vars(jaxpr.outvars), values

    def _vars(self, atoms: Iterable[Atom]) -> Hashable:
        return tuple(self._atom(atom) for atom in atoms)

    def _atom(self, atom: Atom) -> Hashable:
        if isinstance(atom, jax_compat.Literal):
            return "literal", type(atom.val), self._constant(atom.val), atom.aval
        return self.known.setdefault(atom, len(self.known)), atom.aval

    def _eqn(self, eqn: JaxprEqn) -> Hashable:
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
            return self._constant(value)
        try:
            hash(value)
        except TypeError as why:
            raise NotDescribed from why
        return type(value), value

    def _constant(self, x: Any) -> Hashable:
        if isinstance(x, Tracer | jax.Ref):
            raise NotDescribed
        if not isinstance(x, jax.Array):
            key = array_key(x)
            if isinstance(x, np.ndarray):
                self.on_host.append((x, key))
            return type(x), key
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return str(x.dtype), self._constant(jax.random.key_data(x))
        if x.nbytes > SMALL or not x.is_fully_addressable:
            return "itself", id(x)  # a program that is kept holds it
        return str(x.sharding), x.weak_type, array_key(x)


def array_key(x: Any) -> Hashable:
    """An array of the host by its numbers; they may be changed in place."""
    x = np.asarray(x)
    if x.dtype.hasobject:
        raise NotDescribed
    numbers: Any = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return "array", x.shape, x.dtype.str, str(x.dtype), hashlib.blake2b(numbers, digest_size=16).digest()
