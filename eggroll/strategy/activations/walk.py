"""The walk: follows parameters through a traced function to the operations that they enter linearly, the sites.

A value that is affine in parameters is a `Linear` as long as nothing else was done with it. Where data has entered (an
input of the function, or what a site made of one), it waits for a bias to be added; whatever else uses it makes it a
site: the hook says what the function goes on with, and what the site is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.engine import jax_compat
from eggroll.engine.ahead import WRAPPERS
from eggroll.engine.ahead import Frame as Way
from eggroll.engine.annotations import Atom, JaxprEqn, Var
from eggroll.engine.interpreter import Interpreter, Policy
from eggroll.engine.lowrank import Perturbed
from eggroll.strategy.activations.values import ADDING, KEEPING, Between, Linear, Where, between

MOVING = KEEPING | {"broadcast_in_dim", "rev", "neg", "slice", "split", "unstack", "reduce_sum", "cumsum"}
MOVING |= {"optimization_barrier"}
# Linear in each operand alone, of which one may be affine in parameters; and the operands that never may.
PRODUCTS = {"mul", "dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"}
FIXED_OPERANDS: Mapping[str, Callable[[int], Sequence[int]]] = {
    "div": lambda n: (1,),
    "ragged_dot": lambda n: (2,),
    "ragged_dot_general": lambda n: (2,),
    "gather": lambda n: (1,),
    "dynamic_slice": lambda n: range(1, n),
    "dynamic_update_slice": lambda n: range(2, n),
    "scatter-add": lambda n: (1,),
    "scatter": lambda n: (1,),
    "select_n": lambda n: (0,),
    "pad": lambda n: (1,),
}
# Where data may choose among the numbers of parameters; and products that may follow before they are a site.
PICKING = {"gather", "dynamic_slice", "select_n"}
CONTRACTING = PRODUCTS - {"mul"}
BESIDE = "it meets a parameter whose noise is on a layer's outputs"
NOISELESS = "eggroll_noiseless"
JOINING = {"select_n", "concatenate", "dynamic_update_slice", "scatter-add", "scatter", "pad"}  # affine in all operands


def noiseless(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun`, with no site inside: under noise on activations it sees the parameters as they are."""

    def call(*args: Any) -> Any:
        return fun(*args)

    call.__name__ = NOISELESS  # which the call's equation has as its name
    return jax.jit(call)


@dataclass
class Frame:
    """The parameters of a jaxpr, which those of the jaxpr around it become.

    Attributes:
        values: of each.
        names: the function's parameters that each is made of.
        sums: what the sites have given each, or None.
        loops: `(counter, length)` of every loop around, the outermost first; a length is None if it is not known.
        summing: whether sites give their parameters anything on this walk.
    """

    values: list[Any]
    names: list[frozenset[int]]
    loops: tuple[tuple[Any, int | None], ...] = ()
    summing: bool = False
    sums: dict[int, Any] = field(default_factory=dict)

    def add(self, cotangents: Mapping[int, Any]) -> None:
        """Adds to the sums."""
        for i, ct in cotangents.items():
            self.sums[i] = self.sums[i] + ct if i in self.sums else ct

    def leaf(self, i: int) -> Linear:
        """Parameter `i`."""
        return Linear(self.values[i], lambda leaves: leaves[i], frozenset({i}))


class Hook(Protocol):
    """What happens at a site."""

    def site(self, made: Linear, frame: Frame) -> Any:
        """What the function goes on with in place of `made.value`."""

    def refused(self, made: Linear, frame: Frame, eqn: JaxprEqn | None) -> None:
        """A parameter is used otherwise than linearly."""


class Planned:
    """A hook of a walk that was made before: whatever is refused was found then, and is not walked with."""

    def refused(self, made: Linear, frame: Frame, eqn: JaxprEqn | None) -> NoReturn:
        """Never."""
        raise AssertionError(f"a parameter without a site at {eqn}")


class Walk(Interpreter):
    """Walks a traced function. Parameters under weight noise may be `Perturbed`."""

    def __init__(self, policy: Policy, hook: Hook) -> None:
        super().__init__(policy)
        self.hook = hook

    def walk(self, jaxpr: Any, args: Sequence[Any], fed: Sequence[bool], frame: Frame, at: Where) -> list[Any]:
        """Evaluates a jaxpr.

        Args:
            jaxpr: open or closed.
            args: arrays, `Perturbed` or `Linear`.
            fed: whether each comes from the function's inputs.
            frame: whose parameters `Linear` values are made of.
            at: the equation that it is called from.

        Returns:
            The outputs, each with whether it comes from the function's inputs.
        """
        jaxpr, consts = jax_compat.open_jaxpr(jaxpr)
        env: dict[Var, Any] = dict(zip(jaxpr.constvars, map(jax_compat.as_jax, consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        data = {v for v, f in zip(jaxpr.invars, fed, strict=True) if f}

        def read(atom: Atom) -> Any:
            return jax_compat.as_jax(atom.val) if isinstance(atom, jax_compat.Literal) else env[atom]

        def is_fed(atom: Atom) -> bool:
            return not isinstance(atom, jax_compat.Literal) and atom in data

        self.frames.append(frame_of := Way(jaxpr))
        for number, eqn in enumerate(jaxpr.eqns):
            frame_of.eqn = eqn
            values, from_data = [read(v) for v in eqn.invars], [is_fed(v) for v in eqn.invars]
            outs, feeds = self._equation(eqn, values, from_data, frame, (*at, number))
            env.update(zip(eqn.outvars, outs, strict=True))
            data.update(v for v, f in zip(eqn.outvars, feeds, strict=True) if f)
            if any(map(self.is_own, values)):
                self.note_own(*outs)
        self.frames.pop()
        return [(read(v), is_fed(v)) for v in jaxpr.outvars]

    def settle(self, value: Any, frame: Frame, eqn: JaxprEqn | None) -> Any:
        """A value that waits no longer: an output of a layer becomes a site, a bare parameter is refused."""
        if isinstance(value, Between):
            if value.seen is None and value.narrow:
                value.seen = self.hook.site(value.made(), frame)
            elif value.seen is None:
                value.seen = value.bound([self.settle(a, frame, eqn) for a in value.args])
            return value.seen
        if not isinstance(value, Linear):
            return value
        if value.bare or not jnp.issubdtype(value.value.dtype, jnp.floating):
            self.hook.refused(value, frame, eqn)
            return value.value
        if value.seen is None:
            value.seen = self.hook.site(value, frame)
        return value.seen

    def _equation(
        self, eqn: JaxprEqn, args: list[Any], fed: list[bool], frame: Frame, at: Where
    ) -> tuple[list[Any], list[bool]]:
        name, some = eqn.primitive.name, any(fed)
        if eqn.params.get("name") == NOISELESS:
            args = [a.value if isinstance(a, Linear) and a.bare else a for a in args]
            args = [self.settle(a, frame, eqn) for a in args]
        if any(isinstance(a, Linear | Between) for a in args):
            if name in WRAPPERS:
                jaxpr = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
                with jax_compat.source_context(eqn):
                    outs = self.walk(jaxpr, args, fed, frame, at)
                return [o for o, _ in outs], [f for _, f in outs]
            whole = not any(isinstance(a, Perturbed) for a in args) and not self._goes_on(eqn, args)
            if whole and (waiting := between(eqn, args, at)):
                return list(waiting), [True] * len(waiting)
            args = [self.settle(a, frame, eqn) if isinstance(a, Between) else a for a in args]
            if name in LOOPS:
                with jax_compat.source_context(eqn):
                    return LOOPS[name](self, eqn, args, fed, frame, at)
            args, linear = self._operands(eqn, args, fed, frame)
            some = some or any(isinstance(a, Linear) and a.seen is not None for a in args)
            if linear:
                return self._affine(eqn, args, fed, at)
            # What a site made is data: the noise of its own rows has entered.
            some = some or any(isinstance(a, Linear) and not a.bare for a in args)
            args = [self.settle(a, frame, eqn) for a in args]
        return self._apply(eqn, args), [some] * len(eqn.outvars)

    def _operands(self, eqn: JaxprEqn, args: list[Any], fed: list[bool], frame: Frame) -> tuple[list[Any], bool]:
        """The operands, those settled that cannot stay, and whether the equation is affine in what remains."""
        name = eqn.primitive.name
        args = [self.dense(a, eqn, BESIDE) if isinstance(a, Perturbed) else a for a in args]
        waiting = [isinstance(a, Linear) and a.data for a in args]
        outs: list[Any] = [v.aval for v in eqn.outvars]
        if name == "convert_element_type" and not jnp.issubdtype(outs[0].dtype, jnp.floating):
            return args, False
        if name in KEEPING and waiting[0]:
            return args, True
        if name in ADDING:
            beside, out = [not isinstance(a, Linear) for a in args], outs[0]
            shapes = [jnp.shape(a.value) if isinstance(a, Linear) else None for a in args]
            # A bias may be added to what waits, and another output of the same shape; anything else comes after it.
            if any(w and (any(beside) or s != out.shape) for w, s in zip(waiting, shapes, strict=True)):
                args = self._all_settled(args, waiting, fed, frame, eqn)
        elif any(waiting) and not self._goes_on(eqn, args):
            args = self._all_settled(args, waiting, fed, frame, eqn)
        held = [i for i, a in enumerate(args) if isinstance(a, Linear)]
        fixed = set(FIXED_OPERANDS.get(name, lambda n: ())(len(args)))
        joining = name in ADDING or name in JOINING
        known = name in MOVING or joining or name in PRODUCTS or name in FIXED_OPERANDS
        affine = known and bool(held) and not fixed & set(held) and (joining or len(held) == 1)
        return args, affine or not held

    @staticmethod
    def _goes_on(eqn: JaxprEqn, args: list[Any]) -> bool:
        """Whether what data picked of parameters enters what is linear in it and no larger."""
        held, name = [a for a in args if isinstance(a, Linear)], eqn.primitive.name
        if any(isinstance(a, Between) for a in args) or not all(a.picked or a.bare for a in held):
            return False
        outs: list[Any] = [v.aval for v in eqn.outvars]
        known = name in MOVING | PICKING | CONTRACTING and (len(held) == 1 or name in JOINING)
        return known and any(a.picked for a in held) and sum(o.size for o in outs) <= max(a.value.size for a in held)

    def _all_settled(
        self, args: list[Any], which: Sequence[bool], fed: list[bool], frame: Frame, eqn: JaxprEqn
    ) -> list[Any]:
        for i, chosen in enumerate(which):
            if chosen:
                fed[i] = True
        return [self.settle(a, frame, eqn) if w else a for a, w in zip(args, which, strict=True)]

    def _affine(self, eqn: JaxprEqn, args: list[Any], fed: list[bool], at: Where) -> tuple[list[Any], list[bool]]:
        held = [a for a in args if isinstance(a, Linear)]
        if not held:
            return self._apply(eqn, args), [any(fed)] * len(eqn.outvars)
        outs = jax_compat.bind(eqn, [a.value if isinstance(a, Linear) else a for a in args])
        name, beside = eqn.primitive.name, [not isinstance(a, Linear) for a in args]
        data = any(a.data for a in held) or any(f for f, b in zip(fed, beside, strict=True) if b)
        arrays = any(np.ndim(a) for a, b in zip(args, beside, strict=True) if b)
        touched = any(a.touched for a in held) or (arrays and (name in PRODUCTS or name == "div"))
        uses = frozenset().union(*(a.uses for a in held))
        fixed = FIXED_OPERANDS.get(name, lambda n: ())(len(args))
        chosen = name in PICKING and not any(f for i, f in enumerate(fed) if beside[i] and i not in fixed)
        picked = data and (chosen or name in MOVING) and all(a.picked or a.bare for a in held)

        def rebuild(leaves: Sequence[Any], k: int) -> Any:
            values = [a.rebuild(leaves) if isinstance(a, Linear) else a for a in args]
            if name == "stop_gradient":  # evaluations know no derivative that could be stopped
                return values[0]
            if picked and name == "select_n":  # but rows that choose otherwise have none: so `vmap` makes branches
                stops = [isinstance(a, Linear) and any(a.stopped is b for b in held) for a in args]
                values = [lax.stop_gradient(v) if s else v for v, s in zip(values, stops, strict=True)]
            return jax_compat.bind(eqn, values)[k]

        stopped = held[0] if name == "stop_gradient" else None
        made = [
            Linear(v, partial(rebuild, k=k), uses, data, touched, picked, (*at, k), eqn, stopped)
            for k, v in enumerate(outs)
        ]
        return list(made), [data] * len(outs)


def transposed(made: Linear, frame: Frame, cotangent: jax.Array) -> dict[int, jax.Array]:
    """What each parameter of the frame receives: the transpose of the one operation, applied to `cotangent`."""
    used = sorted(made.uses)

    def of(values: list[Any]) -> Any:
        leaves: list[Any] = list(frame.values)
        for i, value in zip(used, values, strict=True):
            leaves[i] = value
        return made.rebuild(leaves)

    _, pull = jax.vjp(of, [frame.values[i] for i in used])
    return dict(zip(used, pull(cotangent.astype(made.value.dtype))[0], strict=True))


LOOPS: dict[str, Callable[..., tuple[list[Any], list[bool]]]] = {}  # `eggroll.strategy.activations.loops` fills it
