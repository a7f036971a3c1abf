"""The walk from a program's output back to its inputs, through the programs inside it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eggroll.engine.annotations import Atom, Jaxpr, JaxprEqn, Var
from eggroll.engine.jax_compat import Literal, open_jaxpr, scan_counts
from eggroll.strategy.dependence.links import Digit, Link, Links, State, add, full, join, matrix, reshape, transfer
from eggroll.strategy.dependence.patterns import Facts, called
from eggroll.strategy.dependence.routes import PAIRS, route
from eggroll.strategy.dependence.values import MOST, Array, dims, zeros


def walk(jaxpr: Jaxpr, outs: Sequence[State | None], facts: Facts, depth: int = 1) -> list[State | None]:
    """States of a jaxpr's inputs from those of its outputs; `facts` keep the others."""
    opened = open_jaxpr(jaxpr)[0]
    facts.states = {}
    for var, state in zip(opened.outvars, outs, strict=True):
        _meet(facts, var, state)
    for number in reversed(range(len(opened.eqns))):
        eqn = opened.eqns[number]
        states = [_settled(facts, var) for var in eqn.outvars]
        if any(state is not None for state in states):
            for var, state in zip(eqn.invars, _operands(number, eqn, states, facts, depth), strict=True):
                _meet(facts, var, state)
    return [_settled(facts, var) for var in opened.invars]


def _meet(facts: Facts, var: Atom, state: State | None) -> None:
    if not isinstance(var, Literal) and state is not None:
        facts.states[var] = join(facts.states.get(var), state)


def _settled(facts: Facts, var: Var) -> State | None:
    """The state of a variable all of whose uses were seen: entries that are known depend on nothing."""
    state, known = facts.states.get(var), facts.known.get(var)
    if state is None or 0 in dims(var):
        return None
    live = state.live
    if known is not None and known.exact.any():
        live = ~known.exact if live is None else live & ~known.exact
        if not live.any():
            return None
    links = dict(state.links)
    for key, link in facts.hints.get(var, {}).items():
        add(links, key[0], key[1], link)
    facts.states[var] = State(links, live)
    return facts.states[var]


def _operands(number: int, eqn: JaxprEqn, outs: list[Any], facts: Facts, depth: int) -> list[State | None]:
    name, inner = eqn.primitive.name, facts.inner.get(number, [])
    if (body := called(eqn)) is not None:
        return walk(body, outs, inner[0], depth)
    if name == "scan":
        return _scan(eqn, outs, inner[0], depth)
    if name == "while":
        return _while(eqn, outs, inner, depth)
    if name == "cond":
        found = [walk(b, outs, f, depth) for b, f in zip(eqn.params["branches"], inner, strict=True)]
        return [_anywhere(outs), *(_joined(states) for states in zip(*found, strict=True))]
    found = []
    for i, var in enumerate(eqn.invars):
        ways = [_operand(eqn, i, o, out, facts) for o, out in enumerate(outs) if out is not None]
        found.append(None if isinstance(var, Literal) else _joined(ways))
    return found


def _joined(states: Sequence[State | None]) -> State | None:
    result = None
    for state in states:
        result = join(result, state)
    return result


def _anywhere(states: Sequence[State | None]) -> State | None:
    """What decides about whole results: of the links of these, those to the steps of loops around."""
    state = _joined(states)
    return state and State({key: link for key, link in state.links.items() if key[0].axis < 0})


def _operand(eqn: JaxprEqn, i: int, o: int, out: State, facts: Facts) -> State | None:
    """The state of operand `i` because of result `o`."""
    name, into, shape = eqn.primitive.name, dims(eqn.invars[i]), dims(eqn.outvars[o])
    if name in PAIRS:
        return out if i == o else None
    if name == "reshape":
        return reshape(out, into, shape) if i == 0 else None
    steps = route(eqn, i, o, facts)
    keep, summed = out.live, ()
    if name == "dot_general":
        summed = tuple(into[s.into] for s in steps if s.out >= len(shape))
        keep = _product_keeps(eqn, i, keep, len(summed), facts)
    state = transfer(out, steps, into, (*shape, *summed), keep)
    mask = _mask(eqn, i, facts)
    return state if mask is None else state._replace(live=mask if state.live is None else mask & state.live)


def _product_keeps(eqn: JaxprEqn, i: int, live: Array | None, summed: int, facts: Facts) -> Array | None:
    """Which terms of a product matter: those in results that do, where the other operand is not known to be 0."""
    nought = zeros(facts.read(eqn.invars[1 - i]))
    rank = len(dims(eqn.outvars[0]))
    keep = None if live is None else live.reshape(live.shape + (1,) * summed)
    if nought is None or not nought.any():
        return keep
    steps = sorted(route(eqn, 1 - i, 0, facts), key=lambda s: s.out)
    shape = [1] * (rank + summed)
    for s in steps:
        shape[s.out] = nought.shape[s.into]
    other = ~nought.transpose([s.into for s in steps]).reshape(shape)
    size = np.prod(np.broadcast_shapes(other.shape, () if keep is None else keep.shape))
    return other if keep is None else keep & other if size <= MOST else keep


def _mask(eqn: JaxprEqn, i: int, facts: Facts) -> Array | None:
    """Entries of an operand that may enter the result at all."""
    known = facts.read(eqn.invars[0]) if eqn.primitive.name in ("select_n", "reduce_max") else None
    if known is None:
        return None
    if eqn.primitive.name == "select_n" and i > 0 and dims(eqn.invars[i]) == dims(eqn.invars[0]):
        return ~(known.exact & (known.value.astype(int) != i - 1))
    if eqn.primitive.name == "reduce_max":  # what a mask put far below another entry
        surely = ~known.low & ~known.maybe
        return ~(known.low & surely.any(tuple(eqn.params["axes"]), keepdims=True))
    return None


def _scan(eqn: JaxprEqn, outs: Sequence[State | None], facts: Facts, depth: int) -> list[State | None]:
    """A scan, whose steps are an axis before all others: what a carry takes along is read by all later steps."""
    consts, count = scan_counts(eqn.params)
    length, step = eqn.params["length"], -depth
    each = [shifted(s, 0, step, -1) for s in outs[count:]]
    carry = list(outs[:count])
    while True:
        ins = walk(eqn.params["jaxpr"], [*carry, *each], facts, depth + 1)
        later = [_later(s, step, length, eqn.params["reverse"]) for s in ins[consts : consts + count]]
        after = [join(old, new) for old, new in zip(carry, later, strict=True)]
        if all(_equal(a, b) for a, b in zip(carry, after, strict=True)):
            break
        carry = after
    stays = [without(s, step) for s in ins[: consts + count]]
    if not length:
        stays[consts:] = map(join, stays[consts:], outs)
    return [*stays, *(shifted(s, step, 0, 1) for s in ins[consts + count :])]


def shifted(state: State | None, old: int, new: int, by: int) -> State | None:
    """Axis `old` as axis `new`, and the others beside it moved by `by`: into a scan's body (-1), or out of it (1)."""
    if state is None:
        return None
    links: Links = {}
    for (digit, loss), link in state.links.items():
        axis = new if digit.axis == old else digit.axis + by * (digit.axis >= 0)
        add(links, digit._replace(axis=axis), loss, link)
    live = state.live
    return State(links, None if live is None else live.any(0) if by < 0 else live[None])


def without(state: State | None, axis: int) -> State | None:
    """A state of something that has not got an axis."""
    return state and state._replace(links={k: v for k, v in state.links.items() if k[0].axis != axis})


def _later(state: State | None, step: int, length: int, reverse: bool) -> State | None:
    """The state of a carry as it leaves a step, from those in which it enters later ones."""
    if state is None:
        return None
    links: Links = {}
    for (digit, loss), link in state.links.items():
        if digit.axis != step:
            add(links, digit, loss, link)
        elif not full(link.reach) and (reach := matrix(digit, loss, link, length)) is not None:
            turned = reach if reverse else reach[::-1]
            sums = np.logical_or.accumulate(np.vstack([turned[:1] & False, turned[:-1]]))
            add(links, Digit(step, 1, length), loss, Link(sums if reverse else sums[::-1]))
    return state._replace(links=links)


def _equal(a: State | None, b: State | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.links.keys() != b.links.keys() or (a.live is None) != (b.live is None):
        return False
    same = a.live is None or b.live is None or bool((a.live == b.live).all())
    return same and all(_same(link, b.links[key]) for key, link in a.links.items())


def _same(a: Link, b: Link) -> bool:
    if a.reach is None or b.reach is None or full(a.reach) or full(b.reach):
        return a.own == b.own and (a.reach is None) == (b.reach is None) and full(a.reach) == full(b.reach)
    return a.own == b.own and np.array_equal(a.reach, b.reach)


def _while(eqn: JaxprEqn, outs: list[State | None], inner: list[Facts], depth: int) -> list[State | None]:
    """A loop of unknown length, which decides about all that it carries."""
    p, carry = eqn.params, outs
    while True:
        asks = walk(p["cond_jaxpr"], [_anywhere(carry)], inner[0], depth)
        ins = walk(p["body_jaxpr"], carry, inner[1], depth)
        entering = zip(asks[p["cond_nconsts"] :], ins[p["body_nconsts"] :], strict=True)
        after = [_joined([old, *new]) for old, new in zip(carry, entering, strict=True)]
        if all(_equal(a, b) for a, b in zip(carry, after, strict=True)):
            return [*asks[: p["cond_nconsts"]], *ins[: p["body_nconsts"]], *after]
        carry = after
