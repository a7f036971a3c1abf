"""Values on a walk: what is affine in parameters, and what lies between layers and a product of their outputs.

Attention's queries, keys and values meet nothing but one another until its output, which has fewer numbers than they.
So noise is on that output alone, and what it is credited with is pulled back through the products between: a third of
the noise, and keys and values hear of the tokens that look at them.

References:
    "Dust", Q Labs 2026 (attention credited through the estimated gradient of its output, per head).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn

Where = tuple[int, ...]  # the numbers of the equations on the way to one, from the outermost jaxpr
Rebuild = Callable[[Sequence[Any]], Any]

# Of one operand; those of the first line keep its numbers, and are made of an output that waits for a bias as well.
KEEPING = {"reshape", "transpose", "squeeze", "copy", "copy_p", "convert_element_type", "sharding_constraint"}
KEEPING |= {"stop_gradient"}
ADDING = {"add", "sub", "add_any"}
# What may lie between: differentiable, and no rounding, comparison or lookup by a layer's output among it.
SMOOTH = KEEPING | ADDING | {"mul", "div", "neg", "dot_general", "select_n", "concatenate", "pad", "slice"}
SMOOTH |= {"split", "unstack", "broadcast_in_dim", "rev", "reduce_sum", "reduce_max", "max", "exp", "exp2", "log"}
SMOOTH |= {"log1p", "tanh", "logistic", "rsqrt", "sqrt", "square", "integer_pow"}
DEEPEST = 100  # equations in a row that are held; a walk through them is a recursion


@dataclass(eq=False)
class Linear:
    """A value that is affine in parameters.

    Attributes:
        value: the numbers.
        rebuild: the same from the parameters of the frame (the jaxpr of a function, or of a loop's body).
        uses: which of them it is made of.
        data: whether the function's inputs have entered: then it is a layer's output, which may wait for a bias.
        touched: whether an array of constants has: then it can be a site, which a bare parameter is none.
        picked: whether data only chose among the parameters' numbers, a row's expert for example: then it goes on to
            what gets no larger, the product with that row.
        where: the equation that made it.
        eqn: the same.
    """

    value: Any
    rebuild: Rebuild
    uses: frozenset[int]
    data: bool = False
    touched: bool = False
    picked: bool = False
    where: Where = ()
    eqn: JaxprEqn | None = None
    stopped: Linear | None = None  # what `stop_gradient` made it of
    seen: Any = None  # what the function goes on with, once it is a site

    @property
    def bare(self) -> bool:
        """Whether it is parameters alone, moved about."""
        return not (self.data or self.touched)


@dataclass(eq=False)
class Between:
    """An equation's output that is made of layers' outputs, and computed once it is known where their noise goes.

    Attributes:
        eqn: the equation.
        args: its operands: arrays, layers' outputs, or what lies between.
        number: of the output.
        where: the equation's place.
        seen: what the function goes on with, once it is known.
    """

    eqn: JaxprEqn
    args: Sequence[Any]
    number: int
    where: Where
    seen: Any = None
    layers: dict[int, Linear] = field(init=False)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        inner = [a for a in self.args if isinstance(a, Between)]
        self.layers = {id(a): a for a in self.args if isinstance(a, Linear)}
        for each in inner:
            self.layers |= each.layers
        self.depth = 1 + max((each.depth for each in inner), default=0)

    @property
    def narrow(self) -> bool:
        """Whether it is a product of layers' outputs, or one moved about, that has fewer numbers than they."""
        if self.eqn.primitive.name in KEEPING and isinstance(self.args[0], Between):
            return self.args[0].narrow
        if self.eqn.primitive.name != "dot_general" or not all(isinstance(a, Linear | Between) for a in self.args):
            return False
        out: Any = self.eqn.outvars[0].aval
        return out.size < sum(np.size(layer.value) for layer in self.layers.values())

    def made(self) -> Linear:
        """Itself as one output, of all the layers' parameters."""

        def rebuild(leaves: Sequence[Any]) -> Any:
            return computed(self, lambda layer: layer.rebuild(leaves), {})

        uses = frozenset().union(*(layer.uses for layer in self.layers.values()))
        value = computed(self, lambda layer: layer.value, {})
        return Linear(value, rebuild, uses, data=True, where=self.where, eqn=self.eqn)

    def bound(self, args: Sequence[Any]) -> Any:
        """The output, of these operands. Evaluating knows no gradient that stops."""
        return args[0] if self.eqn.primitive.name == "stop_gradient" else jax_compat.bind(self.eqn, args)[self.number]


def computed(value: Any, of: Callable[[Linear], Any], known: dict[int, Any]) -> Any:
    """A value from those that `of` gives for layers' outputs; `known`: what was computed, by identity."""
    if not isinstance(value, Linear | Between):
        return value
    if id(value) not in known:
        if isinstance(value, Linear):
            known[id(value)] = of(value)
        else:
            known[id(value)] = value.bound([computed(a, of, known) for a in value.args])
    return known[id(value)]


def between(eqn: JaxprEqn, args: Sequence[Any], where: Where) -> list[Between] | None:
    """An equation's outputs, if it may lie between layers and a product of their outputs, else None."""
    name, held = eqn.primitive.name, [a for a in args if isinstance(a, Linear | Between)]
    known = name not in KEEPING | ADDING or any(isinstance(a, Between) for a in args) or len(held) < len(args)
    waiting = all(a.depth < DEEPEST if isinstance(a, Between) else a.data and a.seen is None for a in held)
    outs: list[Any] = [v.aval for v in eqn.outvars]
    if not (name in SMOOTH and known and waiting and all(jnp.issubdtype(o.dtype, jnp.floating) for o in outs)):
        return None
    return [Between(eqn, args, k, (*where, k)) for k in range(len(outs))]
