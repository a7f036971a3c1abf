"""How a function uses each parameter, found by walking its jaxpr with one probe per parameter axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import lax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import JaxprEqn
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.fallback import Policy
from eggroll.engine.interpreter import Interpreter
from eggroll.engine.lowrank import Factor, Perturbed, Source, Term

Kind = Literal["product", "lookup", "elementwise"]


@dataclass(frozen=True)
class Use:
    """One use of a parameter.

    Attributes:
        path: parameter path.
        kind: `"product"` (contraction or convolution), `"lookup"` (rows picked by index) or `"elementwise"`.
        primitive: JAX primitive.
        line: the user's source line.
        left: parameter axes that are contracted or looked up.
        right: the other axes.
        stack: axes over which a loop runs, or that a batched product pairs up (layers, experts).
        walked: those of the stack over which a loop runs.
        dtype: of the weight where it is used: a model may cast it first.
    """

    path: str
    kind: Kind
    primitive: str
    line: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    stack: tuple[int, ...]
    walked: tuple[int, ...] = ()
    dtype: str = "float32"


class UsageObserver:
    """Collects uses, in the order in which the function makes them."""

    def __init__(self) -> None:
        self.uses: list[Use] = []

    def product(self, eqn: JaxprEqn, value: Perturbed, contracted: Sequence[int], batch: Sequence[int]) -> None:
        """A contraction: its summed axes are one side, its free axes the other."""
        for term in value.terms:
            if _is_broadcast_addend(value, term):
                self._record(eqn, value, term, "elementwise")
            else:
                self._record(eqn, value, term, "product", set(contracted), set(batch))

    def dense(self, eqn: JaxprEqn | None, value: Perturbed) -> None:
        """Any other use; after a lookup, the looked-up axes are one side."""
        for term in value.terms:
            self._record(eqn, value, term, "lookup" if term.looked_up else "elementwise")

    def _record(
        self,
        eqn: JaxprEqn | None,
        value: Perturbed,
        term: Term,
        kind: Kind,
        contracted: set[int] = frozenset(),  # type: ignore[assignment]
        batch: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> None:
        sides: dict[str, set[int]] = {"left": set(), "right": set(), "stack": set()}
        for f in term.factors:
            sides[_side(f, term, kind, contracted, batch)] |= f.origin
        name, line = ("return", "") if eqn is None else (eqn.primitive.name, jax_compat.source_line(eqn))
        left, right, stack = (tuple(sorted(sides[s])) for s in ("left", "right", "stack"))
        walked, dtype = tuple(sorted(term.walked)), str(value.dtype)
        use = Use(term.source.path, kind, name, line, left, right, stack, walked, dtype)
        if use not in self.uses:
            self.uses.append(use)


def _side(f: Factor, term: Term, kind: Kind, contracted: set[int], batch: set[int]) -> str:
    axes = set(f.axes)
    if axes & contracted or (kind == "lookup" and f.origin & term.looked_up):
        return "left"
    if axes & batch or not axes:  # an axis that is gone was walked by a loop, or picked by a constant index
        return "stack"
    return "right"


def _is_broadcast_addend(value: Perturbed, term: Term) -> bool:
    """True for a bias: broadcast along a real axis and added to something before it met the product."""
    owned = {a for f in term.factors for a in f.axes}
    return term.added and any(n != 1 and a not in owned for a, n in enumerate(value.shape))


def probe(path: str, leaf: Any) -> Perturbed:
    """A parameter whose every axis is a factor of its own, so that each can be followed."""
    factors = [Factor(lax.full((n, 1), 0, leaf.dtype), (a,), frozenset({a})) for a, n in enumerate(leaf.shape)]
    scalar = [Factor(lax.full((1,), 0, leaf.dtype), ())]
    return Perturbed(leaf, (Term(tuple(factors or scalar), Source(path)),))


def discover(program: Program, paths: Sequence[str], args: tuple) -> dict[str, list[Use]]:
    """Finds how `program` uses the leaves of its first argument.

    Args:
        program: the traced function.
        paths: the path of each leaf of the first argument.
        args: the arguments it was traced with (arrays or shapes); nothing is computed.

    Returns:
        path → its uses in order; an empty list for an unused parameter.
    """
    observer = UsageObserver()
    arrays, merge, _ = partition(args)

    def run(values: list[Any]) -> None:
        params, *rest = merge(values)
        leaves, tree = jax.tree.flatten(params)
        probes = [probe(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        program.evaluate(Interpreter(Policy("allow"), observer), (tree.unflatten(probes), *rest))

    jax.eval_shape(run, [abstract(a) for a in arrays])
    return {p: [u for u in observer.uses if u.path == p] for p in paths}
