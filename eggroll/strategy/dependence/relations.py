"""Which losses depend on which entries of noise that was added inside: found by following the data, never from shapes.

The program is walked backwards from its output, with a state for each variable. Where a mask is known before the
program runs, what it throws away is followed no further. What cannot be told depends on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eggroll.engine.annotations import Atom, Jaxpr, JaxprEqn, Var
from eggroll.engine.jax_compat import Literal, equations, open_jaxpr, scan_counts
from eggroll.strategy.dependence.links import Digit, Link, Links, State, add, everything, full, reshape
from eggroll.strategy.dependence.patterns import Facts, called, find
from eggroll.strategy.dependence.routes import PAIRS, route
from eggroll.strategy.dependence.values import dims
from eggroll.strategy.dependence.walk import shifted, walk, without


@dataclass(frozen=True)
class Along:
    """Index i of a site's axis reaches losses t of one axis of the losses where `reach[i, t]`.

    Attributes:
        axis: the site's axis.
        reach: bool `[size, loss_size]`; None: only its own, i = t. Full ones take no memory.
        own: the loss that belongs to index i is t = i + own, found along the data; None: none is known to.
        stride: with `size`: i is the digit `(index // stride) % size`. Of a whole axis: 1, and its length.
        size: see `stride`; a site of `[B * T, d]` has two digits on one axis.
        loss_stride: the same of the losses' axis.
        loss_size: the same of the losses' axis.
        also: more that holds at the same time for the same axis of the losses, and may be left out.
    """

    axis: int
    reach: np.ndarray | None
    own: int | None
    stride: int
    size: int
    loss_stride: int
    loss_size: int
    also: tuple[Along, ...] = ()


Relation = tuple[Along | None, ...]


def dependence(jaxpr: Jaxpr, sites: Sequence[int], output: int = 0) -> list[Relation | None]:
    """Which entries of an output, the losses, depend on which entries of some inputs, the sites.

    Args:
        jaxpr: a closed jaxpr.
        sites: numbers of its inputs.
        output: the number of the output.

    Returns:
        For each site a tuple with an entry for each axis of the output, or None where nothing depends on the site. The
        site's entry at an index reaches a loss only if every entry of the tuple lets it; None lets all.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> losses = lambda noise: jnp.cumsum(jnp.tanh(noise).sum(-1), axis=1)  # [B, T]
        >>> ((rows, tokens),) = dependence(jax.make_jaxpr(losses)(jnp.zeros((2, 3, 4))), [0])
        >>> rows.axis, rows.reach, tokens.axis, tokens.own
        (0, None, 1, 0)
        >>> tokens.reach.astype(int)  # a token's noise reaches its own loss and later ones
        array([[1, 1, 1],
               [0, 1, 1],
               [0, 0, 1]])
    """
    opened, _ = open_jaxpr(jaxpr)
    shape = dims(opened.outvars[output])
    if any(_has_state(eqn) for eqn in equations(opened)):
        return [(None,) * len(shape) for _ in sites]
    facts = find(jaxpr, [None] * len(opened.invars))
    digits = [Digit(axis, 1, n) for axis, n in enumerate(shape)]
    outs: list[State | None] = [None] * len(opened.outvars)
    outs[output] = State({(digit, digit): Link(None, 0) for digit in digits})
    walk(opened, outs, facts)
    _spread(opened, facts)
    found = walk(opened, outs, facts)
    return [None if found[site] is None else _relation(found[site], len(shape)) for site in sites]


def _has_state(eqn: JaxprEqn) -> bool:
    """Whether an equation reads or writes what it was not given: then nothing can be told."""
    return any(type(v.aval).__name__ == "AbstractRef" for v in (*eqn.invars, *eqn.outvars))


def _relation(state: State | None, rank: int) -> Relation:
    """The links of a site, the tightest first."""
    found: list[list[Along]] = [[] for _ in range(rank)]
    for (digit, loss), link in (state or State({})).links.items():
        made = Along(digit.axis, link.reach, link.own, digit.stride, digit.size, loss.stride, loss.size)
        found[loss.axis].append(made)
    result: list[Along | None] = []
    for several in found:
        several.sort(key=lambda a: (a.reach is not None and full(a.reach), a.own is None, a.reach is not None, a.axis))
        result.append(replace(several[0], also=tuple(several[1:])) if several else None)
    return tuple(result)


def _spread(jaxpr: Jaxpr, facts: Facts) -> None:
    """Tells what has no loss of its own yet, keys and values for example, whose indices it shares: its operands'."""
    for number, eqn in enumerate(open_jaxpr(jaxpr)[0].eqns):
        name, inner = eqn.primitive.name, facts.inner.get(number, [])
        if (body := called(eqn)) is not None:
            _spread_into(body, eqn.invars, eqn.outvars, facts, inner[0])
        elif name == "cond":
            for branch, its in zip(eqn.params["branches"], inner, strict=True):
                _spread_into(branch, eqn.invars[1:], eqn.outvars, facts, its)
        elif name == "scan":
            _spread_into(eqn.params["jaxpr"], eqn.invars, eqn.outvars, facts, inner[0], scan_counts(eqn.params))
        elif not inner:
            for i, o in np.ndindex(len(eqn.invars), len(eqn.outvars)):
                if owns := _owns(facts, eqn.invars[i]):
                    _hint(facts, eqn.outvars[o], _onward(eqn, i, o, owns, facts))


def _spread_into(
    jaxpr: Jaxpr,
    ins: Sequence[Atom],
    outs: Sequence[Var],
    facts: Facts,
    inner: Facts,
    scan: tuple[int, int] | None = None,
) -> None:
    """Through a jaxpr inside an equation; of a scan by the numbers of its constants and carries."""
    opened, step = open_jaxpr(jaxpr)[0], -1 - 2**20  # in no loop's numbering: what is known of steps stays outside
    kept = (len(ins), len(outs)) if scan is None else (sum(scan), scan[1])
    for i, (outer, var) in enumerate(zip(ins, opened.invars, strict=True)):
        state = State(_owns(facts, outer))
        inside = state if i < kept[0] else without(shifted(state, 0, step, -1), step)
        _hint(inner, var, inside.links if inside else {})
    _spread(opened, inner)
    for o, (outer, var) in enumerate(zip(outs, opened.outvars, strict=True)):
        state = State({key: link for key, link in _owns(inner, var).items() if scan is None or key[0].axis >= 0})
        outside = state if o < kept[1] else shifted(state, step, 0, 1)
        _hint(facts, outer, outside.links if outside else {})


def _owns(facts: Facts, var: Atom) -> Links:
    """The links that say which loss belongs to an index, and nothing else."""
    if isinstance(var, Literal) or var not in facts.states:
        return {}
    links = [*facts.hints.get(var, {}).items(), *facts.states[var].links.items()]
    return {key: Link(everything(key), link.own) for key, link in links if link.own is not None}


def _hint(facts: Facts, var: Var, links: Links) -> None:
    there = {loss.axis for _, loss in _owns(facts, var)}
    if var in facts.states and (new := {key: link for key, link in links.items() if key[1].axis not in there}):
        facts.hints.setdefault(var, {}).update(new)


def _onward(eqn: JaxprEqn, i: int, o: int, owns: Links, facts: Facts) -> Links:
    """From an operand to a result."""
    into, out = dims(eqn.invars[i]), dims(eqn.outvars[o])
    if eqn.primitive.name == "reshape":
        return reshape(State(owns), out, into).links
    links: Links = {}
    steps = [] if eqn.primitive.name in PAIRS else route(eqn, i, o, facts)
    for (digit, loss), link in owns.items():
        for step in steps if digit.axis >= 0 else ():
            if step.into == digit.axis and step.out < len(out) and step.shift is not None and link.own is not None:
                if step.reach is None:
                    add(links, digit._replace(axis=step.out), loss, link)
                elif digit.stride == 1 and digit.size == into[digit.axis]:
                    moved = Digit(step.out, 1, out[step.out])
                    add(links, moved, loss, Link(everything((moved, loss)), link.own - step.shift))
    return links
