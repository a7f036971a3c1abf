"""What one member more costs while it is evaluated, read from the factored function's jaxpr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.fallback import Policy
from eggroll.engine.interpreter import Interpreter, Program, abstract, partition
from eggroll.strategy.inputs import Rows
from eggroll.strategy.perturbation import Sampler, member_sign


def member_bytes(sampler: Sampler, program: Program, params: Any, rows: Rows) -> int:
    """Bytes that the largest operation reads and writes for one member, what all members share left out.

    Base weights, whatever is made of them alone, and base products on shared inputs are the same for every member; a
    parameter that falls back to its dense form is not.

    Args:
        sampler: draws the members' noise.
        program: the traced function of one member.
        params: the parameters, or their shapes.
        rows: the other arguments.

    Returns:
        0 for a function that no member's noise reaches.
    """
    words = jax.ShapeDtypeStruct((1, sampler.streams.words), np.uint32)
    noise = jax.eval_shape(lambda w: jax.tree.map(lambda x: x[0], sampler.draw(w)), words)
    arrays, merge, _ = partition(rows.abstract())
    leaves, tree = jax.tree.flatten(params)

    def member(noise: Any, index: Any, arrays: list[Any], leaves: list[Any]) -> Any:
        # sigma is a plain number here: its value has no part in the shapes.
        seen = sampler.perturb(tree.unflatten(leaves), noise, member_sign(index), 1.0)
        return program.evaluate(Interpreter(Policy("allow")), (seen, *merge(arrays)))

    traced = jax.make_jaxpr(member)(noise, np.int32(0), arrays, [abstract(leaf) for leaf in leaves])
    own = [True] * (len(jax.tree.leaves(noise)) + 1) + [axis is not None for axis in rows.axes]
    return largest_operation(traced, [*own, *[False] * len(leaves)])


def largest_operation(jaxpr: Any, own: Sequence[bool]) -> int:
    """Bytes of the member's own values that the largest operation reads and writes.

    Args:
        jaxpr: open or closed.
        own: for each input, whether it differs between members.

    Returns:
        The number of bytes.
    """
    return _walk(jaxpr, own)[0]


def _walk(jaxpr: Any, own: Sequence[bool]) -> tuple[int, list[bool]]:
    """(bytes of the largest operation, for each output whether it differs between members)."""
    jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
    mine = {v for v, differs in zip(jaxpr.invars, own, strict=True) if differs}
    largest = 0
    for eqn in jaxpr.eqns:
        reads = {v for v in eqn.invars if not isinstance(v, jax_compat.Literal) and v in mine}
        if not reads:
            continue
        mine.update(eqn.outvars)
        size = sum(_bytes(v.aval) for v in [*reads, *eqn.outvars])
        inner = [_walk_inner(eqn, j, mine) for j in jax_compat.inner_jaxprs(eqn)]
        largest = max(largest, size, *inner)
    return largest, [not isinstance(v, jax_compat.Literal) and v in mine for v in jaxpr.outvars]


def _walk_inner(eqn: Any, jaxpr: Any, mine: set[Any]) -> int:
    """The largest operation inside a call, a branch or a step of a loop."""
    inputs = jax_compat.open_jaxpr(jaxpr)[0].invars
    # Predicates, and constants of a loop's condition, come first and are no inputs of this jaxpr.
    outer = eqn.invars[max(len(eqn.invars) - len(inputs), 0) :]
    own = [not isinstance(v, jax_compat.Literal) and v in mine for v in outer]
    own = own if len(own) == len(inputs) else [True] * len(inputs)
    size, outs = _walk(jaxpr, own)
    if eqn.primitive.name in ("scan", "while") and len(outs) >= len(eqn.outvars):  # a body, not a condition
        scan = eqn.primitive.name == "scan"
        first, count = jax_compat.scan_counts(eqn.params) if scan else (len(own) - len(outs), len(outs))
        own = [a or (first <= i < first + count and outs[i - first]) for i, a in enumerate(own)]
        size, _ = _walk(jaxpr, own)  # what one step makes a member's own is so in the next
    return size


def _bytes(aval: Any) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return int(np.prod(getattr(aval, "shape", ()), dtype=np.int64)) * itemsize
