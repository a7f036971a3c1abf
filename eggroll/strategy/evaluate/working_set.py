"""What one member more costs while it is evaluated, read from the factored function's jaxpr."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn, PyTree
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.fallback import Policy
from eggroll.engine.interpreter import Interpreter
from eggroll.strategy.evaluate.inputs import Rows
from eggroll.strategy.noise.sampler import Sampler, member_sign

OTHER, WEIGHT, OWN = range(3)  # shared data, parameters that members share, what differs between members


class Need(NamedTuple):
    """What one member more costs.

    Attributes:
        bytes: that the largest operation reads and writes, what all members share left out.
        flops: multiplications of the largest product of a member's own rows with a matrix that all share; 0: none.
        rows: how many rows a member brings to that product.
        columns: of each matrix that such products are with.
        loops: whether a member's own values go through a loop.
    """

    bytes: int = 0
    flops: int = 0
    rows: int = 0
    columns: frozenset[int] = frozenset()
    loops: bool = False

    def join(self, other: Need) -> Need:
        """The larger of both, operation by operation."""
        flops, rows = max((self.flops, self.rows), (other.flops, other.rows))
        columns, loops = self.columns | other.columns, self.loops or other.loops
        return Need(max(self.bytes, other.bytes), flops, rows, columns, loops)


def member_need(sampler: Sampler, program: Program, params: PyTree, rows: Rows) -> Need:
    """What one member more costs while it is evaluated.

    Base weights, whatever is made of them alone, and base products on shared inputs are the same for every member; a
    parameter that falls back to its dense form is not.

    Args:
        sampler: draws the members' noise.
        program: the traced function of one member.
        params: the parameters, or their shapes.
        rows: the other arguments.

    Returns:
        Zeros for a function that no member's noise reaches.
    """
    words = jax.ShapeDtypeStruct((1, sampler.streams.words), np.uint32)
    noise = jax.eval_shape(sampler.draw_one, words)
    arrays, merge, _ = partition(rows.abstract())
    leaves, tree = jax.tree.flatten(params)

    def member(noise: Any, index: Any, arrays: list[Any], leaves: list[Any]) -> Any:
        # sigma is a plain number here: its value has no part in the shapes.
        seen = sampler.perturb(tree.unflatten(leaves), noise, member_sign(index), 1.0)
        return program.evaluate(Interpreter(Policy("allow")), (seen, *merge(arrays)))

    traced = jax.make_jaxpr(member)(noise, np.int32(0), arrays, [abstract(leaf) for leaf in leaves])
    own = [OWN] * (len(jax.tree.leaves(noise)) + 1) + [OTHER if axis is None else OWN for axis in rows.axes]
    return largest_operations(traced, [*own, *[WEIGHT] * len(leaves)])


def largest_operations(jaxpr: Any, kinds: Sequence[int]) -> Need:
    """The largest operation and the largest shared product on a member's own values.

    Args:
        jaxpr: open or closed.
        kinds: for each input `OWN` if it differs between members, `WEIGHT` for parameters, else `OTHER`.

    Returns:
        What they need for one member.
    """
    return _walk(jaxpr, kinds)[0]


def _walk(jaxpr: Any, kinds: Sequence[int]) -> tuple[Need, list[int]]:
    """(the largest operations, the kind of each output): what is made of several kinds is of the highest."""
    jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
    known = dict(zip(jaxpr.invars, kinds, strict=True))
    largest = Need()
    for eqn in jaxpr.eqns:
        kind = max((_kind(v, known) for v in eqn.invars), default=OTHER)
        known.update(dict.fromkeys(eqn.outvars, kind))
        if kind < OWN:
            continue
        size = sum(_bytes(v.aval) for v in {v for v in eqn.invars if _kind(v, known) == OWN} | {*eqn.outvars})
        largest = largest.join(Need(size)).join(_shared_product(eqn, known))
        for inner in jax_compat.inner_jaxprs(eqn):
            largest = largest.join(_walk_inner(eqn, inner, known))
    return largest, [_kind(v, known) for v in jaxpr.outvars]


def _kind(v: Any, known: dict[Any, int]) -> int:
    return OTHER if isinstance(v, jax_compat.Literal) else known.get(v, OTHER)


def _shared_product(eqn: Any, known: dict[Any, int]) -> Need:
    """A product of the member's own rows with a weight that all members share."""
    kinds = [_kind(v, known) for v in eqn.invars]
    if eqn.primitive.name != "dot_general" or sorted(kinds) != [WEIGHT, OWN]:
        return Need()
    contract, batch = eqn.params["dimension_numbers"]
    side = kinds.index(WEIGHT)
    shape = eqn.invars[side].aval.shape
    summed = math.prod(shape[a] for a in contract[side])
    columns = math.prod(n for a, n in enumerate(shape) if a not in (*contract[side], *batch[side]))
    numbers = math.prod(eqn.outvars[0].aval.shape)
    return Need(0, numbers * summed, numbers // max(columns, 1), frozenset((columns,)))


def _walk_inner(eqn: JaxprEqn, jaxpr: Any, known: dict[Any, int]) -> Need:
    """The largest operation inside a call, a branch or a step of a loop."""
    inputs = jax_compat.open_jaxpr(jaxpr)[0].invars
    # Predicates, and constants of a loop's condition, come first and are no inputs of this jaxpr.
    kinds = [_kind(v, known) for v in eqn.invars[max(len(eqn.invars) - len(inputs), 0) :]]
    kinds = kinds if len(kinds) == len(inputs) else [OWN] * len(inputs)
    need, outs = _walk(jaxpr, kinds)
    loop = eqn.primitive.name in ("scan", "while")
    if loop and len(outs) >= len(eqn.outvars):  # a body, not a condition
        scan = eqn.primitive.name == "scan"
        first, count = jax_compat.scan_counts(eqn.params) if scan else (len(kinds) - len(outs), len(outs))
        carried = [outs[i - first] if first <= i < first + count else OTHER for i in range(len(kinds))]
        # What one step makes of a carry is what the next one gets.
        need, _ = _walk(jaxpr, [max(a, b) for a, b in zip(kinds, carried, strict=True)])
    return need.join(Need(loops=loop))


def _bytes(aval: Any) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return int(np.prod(getattr(aval, "shape", ()), dtype=np.int64)) * itemsize
