"""Random keys that are the same at every call, or turn of a loop, of what is compiled: found by data flow.

A key that names noise is marked where it is used, by an operation that is none once it is compiled. When the outermost
trace around is done, its program is walked: which inputs a mark depends on, which loops' turns, and which of a loop's
carries never change, inside inner loops and jitted functions too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from eggroll.engine import jax_compat
from eggroll.engine.ahead import NOISE_KEY
from eggroll.engine.annotations import Atom, Jaxpr, JaxprEqn
from eggroll.engine.jax_compat import Literal
from eggroll.engine.user_code import warn_user
from eggroll.strategy.noise.keys import as_threefry

CALL = 0  # a call of the outermost function; loops are counted from 1
KEEPS = ("random_wrap", "random_unwrap", "copy", "copy_p", "optimization_barrier", "sharding_constraint")

mark_p = Primitive(NOISE_KEY)  # (key, *what else names its noise) → key
mark_p.def_impl(lambda key, *_, **__: key)
mark_p.def_abstract_eval(lambda key, *_, **__: key)
mlir.register_lowering(mark_p, lambda _, key, *__, **___: [key])
batching.primitive_batchers[mark_p] = lambda args, dims, **what: (mark_p.bind(*args, **what), dims[0])
ad.primitive_jvps[mark_p] = lambda primals, tangents, **what: (mark_p.bind(*primals, **what), tangents[0])


class FixedKeyWarning(UserWarning):
    """A random key is fixed when a function is compiled: every call of it draws the same noise."""


def noise_key(what: str, key: jax.Array, *names: Any, params: Any, beside: Any = ()) -> jax.Array:
    """`key` as a typed threefry key; where it is compiled, a warning if it turns out to be fixed.

    Args:
        what: the call, for the message.
        key: as in `as_threefry`.
        *names: what is folded into it, such as the generation's number.
        params: the parameters: nothing is said of a loop in which they stay, such as one that adds up gradients.
        beside: other arguments: nothing is said where all of both are made inside, of constants.
    """
    key = as_threefry(key)
    if not jax_compat.when_traced(_told):
        return key
    moving, others = ([x for x in jax.tree.leaves(tree) if isinstance(x, Tracer)] for tree in (params, beside))
    return mark_p.bind(key, *names, *moving, *others, what=what, names=1 + len(names), params=len(moving))


def _warn_of_fixed(what: str, line: str) -> None:
    warn_user(
        f"{what} at {line} is compiled with a random key that is a constant beside traced parameters, or that a loop's "
        "carry hands on unchanged: every call, or turn of the loop, draws the same noise, and training stops far from "
        "where it could get. Pass the key (of an ES, the state) to the jitted function as an argument, another at "
        "every call, such as jax.random.fold_in(key, step); in a loop, carry one that jax.random.split made, or scan "
        "over jax.random.split(key, n).",
        FixedKeyWarning,
    )


def _told(traced: jax_compat.Traced) -> None:
    """Walks a program that has just been traced, and warns of its marks."""
    jaxpr, walk = traced.jaxpr, _Walk()
    given = len(jaxpr.constvars) + len(jaxpr.invars) - len(traced.consts)
    consts = [walk.new(CALL) if isinstance(c, Tracer) else walk.new() for c in traced.consts]
    inputs = [walk.new(CALL) for _ in range(given)]
    if traced.carries is not None:  # the body of a loop that is not in a compiled function
        carries, xs = inputs[: traced.carries], inputs[traced.carries :]
        walk.loop(jaxpr, consts, carries, xs)
    else:
        walk.called = traced.is_call and given > 0
        walk.program(jaxpr, [*consts, *inputs])
    for eqn in walk.found.values():
        _warn_of_fixed(eqn.params["what"], jax_compat.source_line(eqn))


@dataclass(frozen=True, eq=False)
class _Value:
    """What is known of a value.

    Attributes:
        of: the loops whose turns it depends on, and `CALL`.
        same: an object of its own, which what is handed on shares.
    """

    of: frozenset[int]
    same: object

    def also(self, *others: _Value) -> _Value:
        """A new value that depends on all of them."""
        return _Value(self.of.union(*(o.of for o in others)), object())

    def without(self, loop: int) -> _Value:
        return _Value(self.of - {loop}, self.same)


class _Walk:
    def __init__(self) -> None:
        self.found: dict[int, JaxprEqn] = {}
        self.called = False  # whether the outermost function is called again and again
        self._loops, self._last, self._settled = [], CALL, True

    def new(self, *of: int) -> _Value:
        return _Value(frozenset(of), object())

    def program(self, jaxpr: Jaxpr, args: Sequence[_Value]) -> list[_Value]:
        """The outputs of a jaxpr, open or closed; constants come first, and depend on nothing."""
        jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
        heads = [*jaxpr.constvars, *jaxpr.invars]
        env = dict(zip(heads, [*[self.new() for _ in range(len(heads) - len(args))], *args], strict=True))

        def read(atom: Atom) -> _Value:
            return self.new() if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._eqn(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _eqn(self, eqn: JaxprEqn, args: list[_Value]) -> list[_Value]:
        name, params = eqn.primitive.name, eqn.params
        if eqn.primitive is mark_p:
            self._judge(eqn, args)
            return args[:1]
        if name in KEEPS and len(args) == len(eqn.outvars):
            return args
        if name == "scan":
            consts, carries = jax_compat.scan_counts(params)
            first, rest = args[:consts], args[consts:]
            return self.loop(params["jaxpr"], first, rest[:carries], rest[carries:])
        if name == "while":
            skip = params["cond_nconsts"]
            first = skip + params["body_nconsts"]
            return self.loop(params["body_jaxpr"], args[skip:first], args[first:], [])
        inner = jax_compat.inner_jaxprs(eqn)
        each = [self.program(jaxpr, self._fitting(jaxpr, args)) for jaxpr in inner]
        if not each or any(len(outs) != len(eqn.outvars) for outs in each):
            return [self.new().also(*args) for _ in eqn.outvars]
        chosen = args[:1] if name == "cond" else []
        return [_either(outs, chosen) for outs in zip(*each, strict=True)]

    def _fitting(self, jaxpr: Jaxpr, args: list[_Value]) -> list[_Value]:
        """The arguments of an inner jaxpr: the last of an equation's, or all to each where they do not fit."""
        n = len(jax_compat.open_jaxpr(jaxpr)[0].invars)
        return args[len(args) - n :] if n <= len(args) else [self.new(CALL, *self._loops).also(*args)] * n

    def loop(self, body: Any, consts: list[_Value], init: Sequence[_Value], xs: Sequence[_Value]) -> list[_Value]:
        """The outputs of a loop; of its carries those are fixed that its body hands on, or makes of what is fixed."""
        self._last += 1
        own, outer, fixed = self._last, self._settled, {}
        if init:  # without a carry it is a map, whose rows may share a key
            self._loops.append(own)
        rows, settled = [self.new(own).also(x) for x in xs], False
        while True:
            self._settled = outer and settled
            carries = [fixed.get(i) or self.new(own).also(c) for i, c in enumerate(init)]
            outs = self.program(body, [*consts, *carries, *rows])
            if settled:
                break
            more = {i: c for i, c in enumerate(carries) if i not in fixed and own not in outs[i].of}
            more |= {i: c for i, c in enumerate(carries) if i not in fixed and outs[i].same is c.same}
            fixed |= {i: _Value((c.of | outs[i].of) - {own}, c.same) for i, c in more.items()}
            settled = not more
        self._settled = outer
        if init:
            self._loops.pop()
        kept = [outs[i].same is c.same for i, c in enumerate(carries)]
        ends = [i if same else o.also(i) for i, o, same in zip(init, outs, kept, strict=False)]
        return [o.without(own) for o in (*ends, *outs[len(init) :])]

    def _judge(self, eqn: JaxprEqn, args: list[_Value]) -> None:
        n, end = eqn.params["names"], eqn.params["names"] + eqn.params["params"]
        of, moving = (self.new().also(*some).of for some in (args[:n], args[n:end]))
        if args[n:] and not self.new().also(*args[n:]).of:
            return
        turns = any(loop not in of and loop in moving for loop in self._loops)
        fixed = turns if self._loops else self.called and CALL not in of
        if self._settled and fixed:
            self.found[id(eqn)] = eqn


def _either(outs: Sequence[_Value], chosen: list[_Value]) -> _Value:
    first = outs[0]
    return first if all(o.same is first.same for o in outs) else first.also(*outs, *chosen)
