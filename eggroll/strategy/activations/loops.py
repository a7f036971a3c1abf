"""Loops and branches of the walk: parameters enter their bodies as parameters of a frame of its own.

Every turn of a loop has noise of its own, by the loop's counter; what its sites give the parameters is added up in the
loop, a stacked parameter's layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Jaxpr, JaxprEqn, OpenJaxpr
from eggroll.engine.lowrank import Perturbed
from eggroll.engine.rules.control_flow import CARRY, STACKED, by_row, going, sliced
from eggroll.strategy.activations.walk import LOOPS, Frame, Linear, Walk, Where, transposed

Outs = tuple[list[Any], list[bool]]


def scan(ctx: Walk, eqn: JaxprEqn, args: list[Any], fed: list[bool], frame: Frame, at: Where) -> Outs:
    """Constants and scanned inputs may be parameters; a carry only where the body hands it on."""
    n_consts, n_carry = jax_compat.scan_counts(eqn.params)
    jaxpr, _ = jax_compat.open_jaxpr(eqn.params["jaxpr"])
    kept = {i for i in range(n_consts, n_consts + n_carry) if jaxpr.outvars[i - n_consts] is jaxpr.invars[i]}
    moving = [i for i in range(n_consts, n_consts + n_carry) if i not in kept]
    last = n_consts + n_carry
    args = _settled(ctx, eqn, args, frame, moving)
    fed = _fed(jaxpr, fed, args, {i: i - n_consts for i in moving})
    inner = _Inner(frame, args, at)
    length = eqn.params["length"]

    def body(carry: tuple[Any, Any], xs: tuple[Any, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        (state, sums), (turn, parts) = carry, xs
        values = list(args)
        for i, value in zip(moving, state, strict=True):
            values[i] = value
        for i, part in zip(range(last, len(args)), parts, strict=True):
            values[i] = sliced(args[i], part, turn) if isinstance(args[i], Perturbed) else part
        own, values = inner.frame(values, (turn, length))
        outs = ctx.walk(eqn.params["jaxpr"], values, fed, own, at)
        outs, flags = inner.settled(ctx, outs, own, eqn)
        feeds[:] = flags
        given = inner.sums(own)
        new = {i: sums[i] + given.pop(i) if i in given else sums[i] for i in sums}
        return ([outs[i - n_consts] for i in moving], new), (outs[n_carry:], given)

    feeds: list[bool] = []
    parts = [a.value if isinstance(a, Linear) else a.base if isinstance(a, Perturbed) else a for a in args[last:]]
    xs = jnp.arange(length), parts
    init = [args[i] for i in moving], inner.zeros(i for i in inner.linear if i < last)
    options = {k: eqn.params[k] for k in ("length", "reverse", "unroll")}
    (state, sums), (ys, given) = lax.scan(body, init, xs, **options)
    inner.give(frame, {**sums, **given})
    rest = dict(zip(moving, state, strict=True))
    outs = [rest[i] if i in rest else args[i] for i in range(n_consts, last)] + list(ys)
    kept_feeds = [feeds[i - n_consts] if i in rest else fed[i] for i in range(n_consts, last)]
    return outs, kept_feeds + feeds[n_carry:]


def while_loop(ctx: Walk, eqn: JaxprEqn, args: list[Any], fed: list[bool], frame: Frame, at: Where) -> Outs:
    """As a scan of unknown length. The condition sees no parameter."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    jaxpr, _ = jax_compat.open_jaxpr(eqn.params["body_jaxpr"])
    first = n_cond + n_body
    n_carry = len(args) - first
    kept = {i for i in range(n_carry) if jaxpr.outvars[i] is jaxpr.invars[n_body + i]}
    moving = [first + i for i in range(n_carry) if i not in kept]
    args = _settled(ctx, eqn, args, frame, [*range(n_cond), *moving])
    own_args, shift = args[n_cond:], {i - n_cond: i - first for i in moving}
    fed_body = _fed(jaxpr, fed[n_cond:], own_args, shift)
    inner = _Inner(frame, own_args, at)

    def merged(state: Sequence[Any]) -> list[Any]:
        values = list(own_args)
        for i, value in zip(moving, state, strict=True):
            values[i - n_cond] = value
        return values

    def proceed(carry: Any) -> Any:
        values = [a.value if isinstance(a, Linear) else a for a in merged(carry[1])[n_body:]]
        return ctx.dense(ctx.evaluate(eqn.params["cond_jaxpr"], [*args[:n_cond], *values])[0], eqn, CARRY)

    feeds: list[bool] = []

    def body(carry: Any) -> Any:
        turn, state, sums = carry
        own, values = inner.frame(merged(state), (turn, None))
        outs = ctx.walk(eqn.params["body_jaxpr"], values, fed_body, own, at)
        outs, flags = inner.settled(ctx, outs, own, eqn)
        feeds[:] = flags
        given = inner.sums(own)
        new = {i: sums[i] + given[i] if i in given else sums[i] for i in sums}
        moved = [outs[i - first] for i in moving]
        return turn + 1, going(proceed(carry), moved, state) if rows else moved, new

    rows, init = by_row(eqn), (jnp.int32(0), [args[i] for i in moving], inner.zeros(inner.linear))
    _, state, sums = lax.while_loop((lambda carry: proceed(carry).any()) if rows else proceed, body, init)
    inner.give(frame, sums)
    rest = dict(zip(moving, state, strict=True))
    outs = [rest[i] if i in rest else args[i] for i in range(first, len(args))]
    return outs, [feeds[i - first] if i in rest else fed[i] for i in range(first, len(args))]


def cond(ctx: Walk, eqn: JaxprEqn, args: list[Any], fed: list[bool], frame: Frame, at: Where) -> Outs:
    """Every branch has sites of its own."""
    args = _settled(ctx, eqn, args, frame, [0])
    index, *operands = [ctx.dense(a, eqn, CARRY) if isinstance(a, Perturbed) else a for a in args]
    feeds = [False] * len(eqn.outvars)

    def branch(number: int, jaxpr: Jaxpr) -> Any:
        inner = inners[number]

        def call(_: Any) -> Any:
            own, values = inner.frame(list(operands), None)
            outs = ctx.walk(jaxpr, values, fed[1:], own, (*at, number))
            outs, flags = inner.settled(ctx, outs, own, eqn)
            feeds[:] = [a or b for a, b in zip(feeds, flags, strict=True)]
            given = inner.sums(own)
            zeros = inner.zeros(inner.linear)
            return outs, {i: given.get(i, zeros[i]) for i in zeros}

        return call

    branches = eqn.params["branches"]
    inners = [_Inner(frame, operands, (*at, k)) for k in range(len(branches))]
    outs, sums = lax.switch(index, [branch(k, b) for k, b in enumerate(branches)], jnp.int32(0))
    inners[0].give(frame, sums)
    return list(outs), [f or fed[0] for f in feeds]


class _Inner:
    """The frame of a body, and what goes between it and the frame around."""

    def __init__(self, outer: Frame, args: Sequence[Any], at: Where) -> None:
        self.outer, self.at = outer, at
        self.linear: dict[int, Linear] = {i: a for i, a in enumerate(args) if isinstance(a, Linear)}
        self.number = {i: k for k, i in enumerate(self.linear)}

    def frame(self, values: list[Any], loop: Any) -> tuple[Frame, list[Any]]:
        """The frame of one turn, and the values with parameters of that frame in place of those around."""
        own = [values[i].value if isinstance(values[i], Linear) else values[i] for i in self.linear]
        names = [frozenset().union(*(self.outer.names[u] for u in made.uses)) for made in self.linear.values()]
        frame = Frame(own, names, self.outer.loops + (() if loop is None else (loop,)), self.outer.summing)
        for k, (i, outer) in enumerate(self.linear.items()):
            # A site of this frame alone, if it becomes one: what is outside has other loops around.
            values[i] = replace(frame.leaf(k), touched=outer.touched, where=(*self.at, -1 - i), eqn=outer.eqn)
        return frame, values

    def settled(
        self, ctx: Walk, outs: Sequence[tuple[Any, bool]], own: Frame, eqn: JaxprEqn
    ) -> tuple[list[Any], list[bool]]:
        """A body's outputs as arrays, and whether each comes from data."""
        feeds = [f or (isinstance(o, Linear) and not o.bare) for o, f in outs]
        values = [ctx.settle(o, own, eqn) for o, _ in outs]
        return [ctx.dense(v, eqn, STACKED) for v in values], feeds

    def zeros(self, which: Any) -> dict[int, Any]:
        """Sums to start from, where the hook makes any."""
        return {i: jnp.zeros_like(self.linear[i].value) for i in which} if self.outer.summing else {}

    def sums(self, own: Frame) -> dict[int, Any]:
        """What a turn's sites have given, by argument."""
        return {i: own.sums[k] for i, k in self.number.items() if k in own.sums}

    def give(self, frame: Frame, sums: dict[int, Any]) -> None:
        """Hands it on to the parameters of the frame around."""
        for i, ct in sums.items():
            frame.add(transposed(self.linear[i], frame, ct))


def _settled(ctx: Walk, eqn: JaxprEqn, args: list[Any], frame: Frame, never: Sequence[int]) -> list[Any]:
    """The operands of a loop: outputs that wait for a bias, and parameters that it carries on, are settled first."""
    args = [
        ctx.settle(a, frame, eqn) if isinstance(a, Linear) and (a.data or i in never) else a for i, a in enumerate(args)
    ]
    return [ctx.dense(a, eqn, CARRY) if isinstance(a, Perturbed) and i in never else a for i, a in enumerate(args)]


def _fed(jaxpr: OpenJaxpr, fed: Sequence[bool], args: Sequence[Any], carries: dict[int, int]) -> list[bool]:
    """Which inputs of a body come from the function's inputs, once turns have handed on what they make.

    Args:
        jaxpr: the body, open.
        fed: before the first turn.
        args: of the loop; parameters among them make data of what they meet.
        carries: the output that each carried input becomes.
    """
    now = [f or isinstance(a, Perturbed) for f, a in zip(fed, args, strict=True)]
    while True:
        marked = [f or isinstance(a, Linear) for f, a in zip(now, args, strict=True)]
        known = {v for v, f in zip(jaxpr.invars, marked, strict=True) if f}
        for each in jaxpr.eqns:
            if any(not isinstance(v, jax_compat.Literal) and v in known for v in each.invars):
                known.update(each.outvars)
        new = list(now)
        for i, out in carries.items():
            atom = jaxpr.outvars[out]
            new[i] = now[i] or (not isinstance(atom, jax_compat.Literal) and atom in known)
        if new == now:
            return now
        now = new


LOOPS.update({"scan": scan, "while": while_loop, "cond": cond})
