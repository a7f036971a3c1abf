"""Finds large values in a jaxpr, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eggroll.engine.jax_compat import Literal, open_jaxpr, scan_counts

PLAIN, FACTOR, X = "plain", "factor", "x"

Kinds = frozenset[str]


@dataclass(frozen=True)
class Value:
    """The result of one equation."""

    primitive: str
    shape: tuple[int, ...]
    kinds: Kinds


def large_values(jaxpr: Any, kinds: Sequence[str], size: int) -> list[Value]:
    """All values of `size` elements or more that depend on factors.

    Args:
        jaxpr: open or closed; nested ones are searched too.
        kinds: of each input, `PLAIN`, `FACTOR` or `X`.
        size: number of elements from which on a value is listed.
    """
    found: list[Value] = []
    _walk(jaxpr, [frozenset({k}) for k in kinds], found)
    return [v for v in found if FACTOR in v.kinds and _size(v.shape) >= size]


def _walk(jaxpr: Any, kinds: Sequence[Kinds], found: list[Value]) -> list[Kinds]:
    jaxpr, _ = open_jaxpr(jaxpr)
    env: dict[Any, Kinds] = dict.fromkeys(jaxpr.constvars, frozenset())
    env.update(zip(jaxpr.invars, kinds, strict=True))

    def read(atom: Any) -> Kinds:
        return frozenset() if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        outs = NESTED.get(eqn.primitive.name, _call)(eqn, inputs, found)
        env.update(zip(eqn.outvars, outs, strict=True))
        found += [Value(eqn.primitive.name, v.aval.shape, k) for v, k in zip(eqn.outvars, outs, strict=True)]
    return [read(v) for v in jaxpr.outvars]


def _call(eqn: Any, inputs: list[Kinds], found: list[Value]) -> list[Kinds]:
    """A call walks its jaxpr; any other equation mixes all its inputs."""
    inner = [p for p in eqn.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
    if eqn.primitive.name.startswith("scatter"):  # its jaxpr is what it does to two numbers
        inner = []
    if len(inner) == 1:
        return _walk(inner[0], inputs, found)
    assert not inner, f"cannot walk {eqn.primitive.name}"
    return [frozenset().union(*inputs)] * len(eqn.outvars)


def _scan(eqn: Any, inputs: list[Kinds], found: list[Value]) -> list[Kinds]:
    consts, n_carry = scan_counts(eqn.params)
    fixed, carry, xs = inputs[:consts], inputs[consts : consts + n_carry], inputs[consts + n_carry :]

    def body(carry: list[Kinds], found: list[Value]) -> list[Kinds]:
        return _walk(eqn.params["jaxpr"], [*fixed, *carry, *xs], found)

    carry = _settle(lambda c: body(c, [])[:n_carry], carry)
    return [*carry, *body(carry, found)[n_carry:]]


def _while(eqn: Any, inputs: list[Kinds], found: list[Value]) -> list[Kinds]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond, fixed, carry = inputs[:n_cond], inputs[n_cond : n_cond + n_body], inputs[n_cond + n_body :]
    carry = _settle(lambda c: _walk(eqn.params["body_jaxpr"], [*fixed, *c], []), carry)
    _walk(eqn.params["cond_jaxpr"], [*cond, *carry], found)
    return _walk(eqn.params["body_jaxpr"], [*fixed, *carry], found)


def _cond(eqn: Any, inputs: list[Kinds], found: list[Value]) -> list[Kinds]:
    index, *operands = inputs
    branches = [_walk(b, operands, found) for b in eqn.params["branches"]]
    return [index.union(*outs) for outs in zip(*branches, strict=True)]


def _settle(step: Callable[[list[Kinds]], list[Kinds]], carry: list[Kinds]) -> list[Kinds]:
    while (new := [a | b for a, b in zip(carry, step(carry), strict=True)]) != carry:
        carry = new
    return carry


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


NESTED = {"scan": _scan, "while": _while, "cond": _cond}
